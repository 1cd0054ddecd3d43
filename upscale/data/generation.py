"""Writing rows as a corpus: webdataset shards with an index, restartable, the same bytes at any number of processes.

Row k of lane l among L lanes is row k L + l, as in training and in `upscale.rows`. So a run that reads these rows with
as many lanes, and with full batches from the first step, trains on the rows that it would have written itself.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from upscale.config import Config
from upscale.config import files as config_files
from upscale.console.progress import Progress
from upscale.corpora.shards import index
from upscale.corpora.shards.index import PIECE_BYTES, SHARD_PIECES, Index, Shard
from upscale.corpora.shards.writing import Part, write_shard
from upscale.corpora.work.locking import locked
from upscale.data.stream import Given, config_from
from upscale.data.training_rows import RestorableRows, Rows, SnapshotRows, open_rows
from upscale.data.worker_pool import Workers
from upscale.errors import UserError
from upscale.files import parse_json, write_atomically
from upscale.machine import cores

CORPUS = "rows"
"""What the index calls the corpus."""
STATE = "state.safetensors"
LICENCE = "none: written by random programs"


def generate(
    given: Given,
    overrides: Sequence[str] = (),
    *,
    rows: int,
    to: str | Path,
    processes: int | None = None,
    device: torch.device | str = "cpu",
    piece_bytes: int = PIECE_BYTES,
    shard_pieces: int = SHARD_PIECES,
) -> Index:
    """The index of the corpus of the first `rows` rows of a config, written to the folder `to` or found there.

    `given` and `overrides` are as for `upscale.rows`. A sample of a shard is as many whole rows as fit into
    `piece_bytes`, at least one: context + 1 tokens each, a byte a token, or int16 in little-endian order for a
    vocabulary above 256 and for rows that choose their targets. `processes` divide the lanes on the CPU (None: one a
    core); on another `device` this process writes alone. A call that was stopped is continued by the same call, with
    any number of processes.

    Raises UserError for a config without sources, a folder that holds something else, and a number below 1.
    """
    config, to = config_from(given, overrides), Path(to)
    if config.data.kind != "synthetic":
        raise UserError("data.kind is corpus, which has no sources: rows are written with data.kind=synthetic")
    if rows < 1 or (processes is not None and processes < 1):
        raise UserError(f"rows is {rows} and processes {processes}: allowed: 1 or more")
    work = _Work(config, rows, to, torch.device(device), piece_bytes, shard_pieces)
    try:
        if (to / index.INDEX).exists():
            return work.found()
        if to.is_dir() and any(to.iterdir()) and not (to / index.WORK["generate"]).is_dir():
            raise UserError(f"{to} is not empty; allowed: a new or empty folder")
        with locked(to, "generate") as folder:
            return work.done(folder, cores.of_this_rank() if processes is None else processes)
    except OSError as error:
        raise UserError(
            f"cannot write rows to {to}: {error.strerror or error}. What is written stays: the same call continues."
        ) from None


def _tensor(content: bytearray) -> torch.Tensor:
    """A copy, (bytes,) uint8."""
    return torch.frombuffer(content, dtype=torch.uint8).clone() if content else torch.empty(0, dtype=torch.uint8)


class _Text:
    """Bytes in memory, read as `write_shard` reads a spool."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def read(self, start: int, size: int) -> bytes:
        return self.content[start : start + size]


class _Work:
    """One call of `generate`."""

    def __init__(self, config: Config, rows: int, to: Path, device: torch.device, piece: int, pieces: int) -> None:
        self.config, self.rows, self.to, self.device = config, rows, to, device
        self.token_bytes = 2 if config.data.masked or config.model.vocabulary > 256 else 1
        self.row_bytes = self.token_bytes * (config.model.context + 1)
        self.piece_bytes = self.row_bytes * max(1, piece // self.row_bytes)
        self.shard_pieces = pieces
        tree = config_files.as_tree(config)
        self.options: dict[str, Any] = {
            "rows": rows,
            "seed": config.seed("rows"),
            "context": config.model.context,
            "vocabulary": config.model.vocabulary,
            **{key: tree["data"][key] for key in ("lanes", "draw", "enrich", "buffer", "reset", "iterate", "sources")},
        }
        """All that decides which bytes are written, but for how floats are rounded."""
        if config.seed("order") != config.seed("rows"):
            self.options["order_seed"] = config.seed("order")
        if config.data.control != "none":
            self.options["control"] = config.data.control

    def found(self) -> Index:
        """The index of a complete corpus, if it is what was asked for and whole."""
        found = index.read(self.to)
        if found.corpus != CORPUS or found.options != self.options:
            raise UserError(
                f"{self.to} already holds {found.corpus} with {found.options}. Choose another folder, or delete it."
            )
        if problems := index.problems(self.to, found.splits["train"], hashes=True):
            raise UserError(f"{'; '.join(problems)}. Delete {self.to} and generate it again.")
        # Left by a call that was killed right at its end.
        shutil.rmtree(self.to / index.WORK["generate"], ignore_errors=True)
        return found

    def done(self, folder: Path, processes: int) -> Index:
        """The corpus, written from where an earlier call stopped."""
        for unfinished in [*self.to.glob(".*.tmp"), *folder.glob(".*.tmp")]:
            unfinished.unlink()
        # Before anything is started: a state of another call ends this one.
        state, shards, method = self._read(folder / STATE)
        rows = self._open(processes)
        try:
            if method not in (None, rows.method):
                raise UserError(
                    f"{self.to} was begun by rows computed by {method}, but here by {rows.method}, which rounds "
                    "differently. Continue on the same kind of device, or delete the folder."
                )
            with Progress(f"writing {self.to}", self.rows * self.row_bytes) as progress:
                self._write(rows, state, shards, folder / STATE, progress)
            method = rows.method
        finally:
            rows.close()
        written = Index(
            corpus=CORPUS,
            piece_bytes=self.piece_bytes,
            shard_pieces=self.shard_pieces,
            splits={"train": shards},
            options=self.options,
            licence=LICENCE,
            provenance={"input": "sources", "method": method, "versions": config_files.versions()},
            token_bytes=2 if self.token_bytes == 2 else 1,
            vocabulary=self.config.model.vocabulary,
            row_tokens=self.config.model.context + 1,
        )
        written.write(self.to)
        shutil.rmtree(folder)
        return written

    def _open(self, processes: int) -> RestorableRows:
        lanes, make = range(self.config.data.lanes), open_rows(self.config)
        if self.device.type != "cpu" or min(processes, len(lanes)) == 1:
            return SnapshotRows(make(lanes, self.device))
        return Workers(make, lanes, processes)

    def _write(
        self, rows: Rows, state: dict[str, torch.Tensor], shards: list[Shard], file: Path, progress: Progress
    ) -> None:
        """All shards that are missing; after each the state that follows it is saved."""
        count, lanes = self.config.data.draw, self.config.data.lanes
        shard_bytes = self.piece_bytes * self.shard_pieces
        pending = bytearray(state.pop("pending").numpy().tobytes() if state else b"")
        if state:
            rows.load_state(state)
        written = sum(shard.text_bytes for shard in shards)
        progress(written)
        left = self.rows * self.row_bytes - written
        while left:
            size = min(shard_bytes, left)
            while len(pending) < size:
                block = rows.draw(count).cpu().unflatten(0, (lanes, count)).transpose(0, 1).contiguous()
                pending += block.numpy().astype("<i2" if self.token_bytes == 2 else "u1", copy=False).tobytes()
            content = bytes(pending[:size])
            del pending[:size]
            _, shard = write_shard(
                Part("train", len(shards), 0, size),
                spool=_Text(content),
                folder=self.to,
                piece_bytes=self.piece_bytes,
                shard_pieces=self.shard_pieces,
            )
            shards.append(shard)
            left -= size
            progress(size)
            if left:
                self._save(file, {**rows.state(), "pending": _tensor(pending)}, shards, rows.method)

    def _save(self, file: Path, state: dict[str, torch.Tensor], shards: list[Shard], method: str) -> None:
        about = {"options": self.options, "shards": [asdict(shard) for shard in shards], "method": method}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
        write_atomically(file, save(tensors, {"about": json.dumps(about)}))

    def _read(self, file: Path) -> tuple[dict[str, torch.Tensor], list[Shard], str | None]:
        """The state that an earlier call left, its shards and how it computed rows; nothing where there is none."""
        if not file.exists():
            return {}, [], None
        try:
            with safe_open(file, framework="pt", backend="pread") as opened:
                about = parse_json(opened.metadata()["about"])
                state = {name: opened.get_tensor(name) for name in list(opened.keys())}
            shards = [Shard(**shard) for shard in about["shards"]]
            options, method = about["options"], about["method"]
        except (SafetensorError, LookupError, ValueError, TypeError) as error:
            raise UserError(f"{file} is damaged ({error}): delete {self.to} and generate it again") from None
        if options != self.options:
            raise UserError(
                f"{self.to} was begun with {options}, now asked: {self.options}. Choose another folder, or delete it."
            )
        if problems := index.problems(self.to, shards, hashes=False):
            raise UserError(f"{'; '.join(problems)}. Delete {self.to} and generate it again.")
        return state, shards, method
