"""Rows for anyone's own training loop: an endless dataset of PyTorch that resumes exactly, in any world.

What is divided among ranks, and of a rank among DataLoader workers, are lanes, as in training. Row k of lane l among L
lanes is row k L + l of the stream; a process gives its lanes' rows in this order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import IterableDataset, get_worker_info

from upscale.config import Config
from upscale.config import files as config_files
from upscale.data.lanes import owned_lanes
from upscale.data.training_rows import Rows, open_rows
from upscale.errors import UserError
from upscale.sources import SourceSettings
from upscale.sources.tokens import ids

FORMAT = "upscale-rows-1"
NO_TARGET = -100
"""The target of a token that is none: what torch's cross-entropy leaves out unless told otherwise."""

Given = Config | str | Path | SourceSettings | Mapping[str, Any] | Sequence[str | SourceSettings | Mapping[str, Any]]
Form = Literal["pairs", "labels", "tokens"] | Callable[[torch.Tensor, torch.Tensor], Any]
State = dict[str, Any]


def config_from(given: Given, overrides: Sequence[str] = ()) -> Config:
    """The resolved config of a config file, a config, or sources as `data.sources` lists them, with overrides.

    A source is its kind alone (only in a list), or a mapping with `kind`. Raises UserError with every problem at once.
    """
    if isinstance(given, (str, Path)):
        return config_files.load(given, overrides).resolved()
    if isinstance(given, Config):
        return config_files.from_tree(config_files.as_tree(given), overrides).resolved()
    sources = [given] if isinstance(given, (Mapping, SourceSettings)) else given
    return config_files.from_tree({"data": {"sources": [_plain(source) for source in sources]}}, overrides).resolved()


def _plain(source: str | SourceSettings | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(source, str):
        return {"kind": source}
    return source.model_dump(mode="json", by_alias=True) if isinstance(source, SourceSettings) else dict(source)


def rows(
    given: Given,
    overrides: Sequence[str] = (),
    *,
    rank: int | None = None,
    world_size: int | None = None,
    form: Form = "pairs",
    device: torch.device | str = "cpu",
) -> RowStream:
    """An endless dataset of the rows that `upscale train` would train on with this config; see `RowStream`.

    `given` is a config file, a Config, or one or more sources; `overrides` are `section.key=value`, as on the command
    line: `rows(["lstm", {"kind": "dyck", "weight": 0.5}], ["model.context=256", "data.lanes=32"])`. `rank` and
    `world_size` are by default those of torch.distributed where it is in use, else 0 and 1. Raises UserError.
    """
    if rank is None and world_size is None and torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    config = config_from(given, overrides)
    return RowStream(config, rank=rank or 0, world_size=world_size or 1, form=form, device=device)


class RowStream(IterableDataset):
    """Rows of one rank of a resolved config, without an end.

    An item is one row of context + 1 tokens, int64, in one of these forms:

    - `pairs`: input and target, (context,) each; -100 where a token is no target.
    - `labels`: a dict with `input_ids` and `labels`, (context + 1,) each, for models that shift labels themselves.
    - `tokens`: (context + 1,) tokens, for models that make input and target of them; not for rows that choose targets.
    - a function of input and target: what it returns.

    Iterating again continues. Under `torch.utils.data.DataLoader` with workers each worker has a share of the rank's
    lanes. Where ranks times workers divide `data.lanes`, the first n rows of every process are together the first rows
    of the stream, whatever the numbers are; the order in which a DataLoader takes them from its workers differs. Raises
    UserError for more processes than lanes.
    """

    def __init__(
        self,
        config: Config,
        *,
        rank: int = 0,
        world_size: int = 1,
        form: Form = "pairs",
        device: torch.device | str = "cpu",
    ) -> None:
        if not (isinstance(form, str) and form in ("pairs", "labels", "tokens")) and not callable(form):
            raise UserError(f"form is {form!r}; allowed: pairs, labels, tokens, or a function of input and target")
        self.config, self.form, self.device = config, form, torch.device(device)
        self.lanes: tuple[int, ...] = tuple(_share(config.data.lanes, rank, world_size, "ranks", config))
        """This rank's lanes, of which a DataLoader worker has a share."""
        self._open = open_rows(config)
        if form == "tokens" and (self._open.masked or config.data.first_target > 1):
            raise UserError(
                "form is tokens, but these rows say which tokens are targets, which would be lost: give pairs or labels"
            )
        self._rows: Rows | None = None
        self._pending: State | None = None
        self._block: torch.Tensor | None = None
        self._before: dict[str, torch.Tensor] = {}
        self._taken: list[int] = []

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield self._formed(self._next())

    def state_dict(self) -> State:
        """All that decides which rows come next, as tensors and texts: of this process's lanes, after the row given
        last."""
        return self._state(self._begun())

    def _state(self, rows: Rows) -> State:
        between = self._block is None or min(self._taken) == self.config.data.draw
        taken = [0] * len(rows.lanes) if between else self._taken
        return {
            "format": FORMAT,
            "config": json.dumps(_what_decides(self.config)),
            "method": rows.method,
            "lanes": torch.tensor(rows.lanes, dtype=torch.int64),
            "taken": torch.tensor(taken, dtype=torch.int64),
            **(rows.state() if between else self._before),
        }

    def load_state_dict(self, state: State | Sequence[State]) -> None:
        """Continue from a state, or from those of all processes of another world, in any order.

        Raises UserError where a lane of this process is in none of them, or where they are of other rows.
        """
        states = [state] if isinstance(state, Mapping) else list(state)
        for each in states:
            self._check(each)
        self._pending = _joined(states, self._own_lanes())
        self._rows = self._block = None

    def __getstate__(self) -> dict[str, Any]:
        """For another process: what has been begun here is continued there from its state."""
        kept = {**vars(self), "_rows": None, "_block": None, "_before": {}}
        return {**kept, "_pending": self._pending if self._rows is None else self._state(self._rows)}

    def _own_lanes(self) -> tuple[int, ...]:
        """The lanes of this process: the rank's, or a DataLoader worker's share of them."""
        worker = get_worker_info()
        if worker is None:
            return self.lanes
        return tuple(self.lanes[place] for place in _share(len(self.lanes), worker.id, worker.num_workers, "workers"))

    def _begun(self) -> Rows:
        """The lanes of this process, in the state that was loaded or, at first, new."""
        mine = self._own_lanes()
        if self._rows is not None and self._rows.lanes != mine:  # begun in the process that has started this worker
            self._pending, self._rows = self._state(self._rows), None
        if self._rows is None:
            rows = self._open(mine, self.device)
            self._rows, self._block, self._taken = rows, None, [0] * len(mine)
            if self._pending is not None:
                state = _joined([self._pending], mine)
                if (method := state["method"]) != rows.method:
                    raise UserError(
                        f"the state's rows were computed by {method}, but here by {rows.method}, which rounds "
                        "differently: continue on the same kind of device"
                    )
                rows.load_state({name: state[name] for name in ("buffers", "rounds", "origins") if name in state})
                self._pending = None
                if state["taken"].any():
                    self._draw(rows)
                    self._taken = state["taken"].tolist()
        return self._rows

    def _draw(self, rows: Rows) -> torch.Tensor:
        """The next block: a round of every lane, (lanes, draw, context + 1)."""
        self._before = rows.state()
        count = self.config.data.draw
        self._block = rows.draw(count).unflatten(0, (len(rows.lanes), count))
        self._taken = [0] * len(rows.lanes)
        return self._block

    def _next(self) -> torch.Tensor:
        """The next row: of the lanes that have given fewest of the block, the first."""
        rows = self._begun()
        block = self._block
        if block is None or min(self._taken) == self.config.data.draw:
            block = self._draw(rows)
        number = min(self._taken)
        lane = self._taken.index(number)
        self._taken[lane] += 1
        return block[lane, number]

    def _formed(self, row: torch.Tensor) -> Any:
        tokens = ids(row).long()
        if self.form == "tokens":
            return tokens
        targets = tokens.masked_fill(row < 0, NO_TARGET) if row.dtype == torch.int16 else tokens.clone()
        targets[: self.config.data.first_target] = NO_TARGET
        if self.form == "labels":
            return {"input_ids": tokens, "labels": targets}
        pair = tokens[:-1], targets[1:]
        return self.form(*pair) if callable(self.form) else pair

    def _check(self, state: State) -> None:
        if not isinstance(state, Mapping) or state.get("format") != FORMAT:
            raise UserError("this is no state of `upscale.rows`: give what `state_dict` returned")
        there, here = json.loads(state["config"]), _what_decides(self.config)
        changed = [key for key in here if key in there and there[key] != here[key]]
        if changed:
            lines = (f"  {key}: there {there[key]}, here {here[key]}" for key in changed)
            raise UserError("\n".join(["the state is of other rows:", *lines]))


def _share(lanes: int, number: int, count: int, what: str, config: Config | None = None) -> range:
    """The places of one of `count` processes; UserError where there are not enough lanes."""
    if not 1 <= count <= lanes or not 0 <= number < count:
        of = f"data.lanes = {lanes}" if config else f"{lanes} lanes of this rank"
        raise UserError(
            f"number {number} of {count} {what} with {of}; allowed: at least one lane for each, numbers from 0. "
            "Raise data.lanes, or take fewer."
        )
    return owned_lanes(lanes, number, count)


def _what_decides(config: Config) -> dict[str, Any]:
    """The keys that decide which rows come, by name; folders of corpora may move, their texts are compared."""
    tree = config_files.as_tree(config)
    data = {key: value for key, value in tree["data"].items() if key not in ("ahead", "workers", "corpora")}
    return {
        "run.seed": config.seed("rows"),
        "run.seeds.order": config.seed("order"),
        "model.context": tree["model"]["context"],
        "model.vocabulary": tree["model"]["vocabulary"],
        **{f"data.{key}": value for key, value in data.items()},
    }


def _joined(states: Sequence[State], lanes: Sequence[int]) -> State:
    """One state of these lanes, from those of several processes."""
    places = {lane: (state, place) for state in states for place, lane in enumerate(state["lanes"].tolist())}
    if missing := [lane for lane in lanes if lane not in places]:
        raise UserError(
            f"the state has no lane {', '.join(map(str, missing[:8]))}: give the states of all processes as a list, "
            "or the same numbers of ranks and workers as before"
        )
    methods = {places[lane][0]["method"] for lane in lanes}
    if len(methods) > 1:
        raise UserError(f"the states' rows were computed in different ways: {', '.join(sorted(methods))}")
    found = {name: torch.stack([places[lane][0][name][places[lane][1]] for lane in lanes]) for name in _tensors(states)}
    return {**states[0], **found, "method": methods.pop()}


def _tensors(states: Sequence[State]) -> list[str]:
    return [name for name, value in states[0].items() if isinstance(value, torch.Tensor)]
