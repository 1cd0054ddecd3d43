"""When a run saves and what: the counters, the engine's fragments and the lanes, to and from checkpoints."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from upscale import engines, schedule
from upscale.checkpoint import layout, manifest
from upscale.checkpoint.reader import Reader
from upscale.checkpoint.warm_start import Initialization
from upscale.checkpoint.writer import Writer, snapshot
from upscale.config import Config
from upscale.config import files as config_files
from upscale.data.training_rows import Rows
from upscale.distributed.world import World
from upscale.errors import UserError
from upscale.model.parametrization import described
from upscale.optim.muon import MOMENTUM


@dataclass
class Counters:
    """All that a run remembers beside weights, moments and buffers."""

    step: int = 0
    instances: int = 0
    seconds: float = 0.0
    """Of training, as `run.minutes` counts them."""
    skipped_steps: int = 0
    """Steps whose update is not in the weights: not finite, or spikes, or rolled back."""
    recent_losses: list[float] = field(default_factory=list)
    """What the next loss is compared with: see `upscale.training.spikes`."""
    spikes: list[dict] = field(default_factory=list)
    """One entry for each, oldest first: see `upscale.training.spikes.Spike`."""
    evaluation_owed: bool = False
    """An evaluation was due after this step, and a request to stop came first."""
    wandb_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])


class Saver:
    """Saves and restores one run."""

    def __init__(
        self,
        config: Config,
        directory: Path,
        world: World,
        engine: engines.Engine,
        lanes: Rows,
        check: Callable[[], None] = lambda: None,
    ):
        self.config, self.world, self.engine, self.lanes = config, world, engine, lanes
        self.folder = directory / layout.CHECKPOINTS
        self.writer = Writer(self.folder, world, config.checkpoint.keep, config.checkpoint.asynchronous, check)
        self._blocking_seconds = 0.0

    def due(self, before: int, counters: Counters) -> bool:
        """Whether a regular save falls on the step that led from `before` to `counters.instances` instances."""
        settings = self.config.checkpoint
        if schedule.crossed(before, counters.instances, settings.milestones):
            return True
        if settings.every_steps:
            return counters.step % settings.every_steps == 0
        return schedule.crossed(before, counters.instances, settings.every)

    def save(self, before: int, counters: Counters) -> str | None:
        """Copy the state and have it written; returns why the save before this one failed, if it did."""
        begin = time.perf_counter()
        failure = self.wait()
        state = self.lanes.state()
        content = {
            "counters": asdict(counters),
            "counts_parts": True,
            "steps_taken": {str(group): steps for group, steps in self.engine.steps_taken().items()},
            "rounds": dict(pair for part in self.world.gather_objects(self._rounds(state)) for pair in part.items()),
            "methods": sorted(set(self.world.gather_objects(self.lanes.method))),
            "milestone": schedule.crossed(before, counters.instances, self.config.checkpoint.milestones),
            "world_size": self.world.size,
            "config": config_files.as_tree(self.config),
        }
        lanes = {str(lane): buffer for lane, buffer in zip(self.lanes.lanes, state["buffers"], strict=True)}
        if "origins" in state:
            lanes |= {f"origins/{lane}": row for lane, row in zip(self.lanes.lanes, state["origins"], strict=True)}
        self.writer.save(snapshot(counters.step, self.engine.fragments(), lanes, content))
        self._blocking_seconds += time.perf_counter() - begin
        return failure

    def _rounds(self, state: dict[str, torch.Tensor]) -> dict[str, int]:
        return dict(zip(map(str, self.lanes.lanes), state["rounds"].tolist(), strict=True))

    def wait(self) -> str | None:
        """Wait for the last save to end; returns why it failed, if it did."""
        self.writer.wait()
        failure, self.writer.failure = self.writer.failure, None
        return failure

    def settle_evaluation(self, counters: Counters) -> str | None:
        """Note in this step's checkpoint that the evaluation it owed has been recorded; returns why that failed."""
        if self.world.is_main:
            path = manifest.step_folder(self.folder, counters.step)
            try:
                self.writer.check()
                manifest.write(path, {**manifest.read(path), "counters": asdict(counters)})
            except (OSError, manifest.InvalidCheckpoint) as error:
                return str(error)
        return None

    def take_blocking_seconds(self) -> float:
        """Seconds training waited for saves since the last call."""
        seconds, self._blocking_seconds = self._blocking_seconds, 0.0
        return seconds

    def resume(self, initialization: Initialization | None = None) -> tuple[Counters, list[str]]:
        """Restore the newest valid checkpoint, or take the weights that init.from names, or draw random ones.

        Returns the counters and what the user should be told. Raises UserError when there are checkpoints but none can
        be used: starting again from nothing would overwrite them.
        """
        notes: list[str] = []
        found = manifest.newest_valid(self.folder, self.world, notes.append)
        if found:
            content = found[1]
            try:
                counters = _counters(*found)
                self._load_lanes(self._load_engine(*found))
            except manifest.InvalidCheckpoint as error:  # whole, but not of this config or version
                raise UserError(f"{error}. Restore another step, or start a new run with another run.name.") from None
            world = content["world_size"]
            note = f"resumed from {found[0]}: step {counters.step:,}, {counters.instances:,} instances"
            methods = content["methods"]  # older checkpoints do not say
            if methods and methods != [self.lanes.method]:
                notes.append(
                    f"rows were computed by {', '.join(methods)} and are now by {self.lanes.method}, which rounds "
                    "otherwise: other rows, as random as those of an uninterrupted run"
                )
            changed = "" if world == self.world.size else f" (written by {world} ranks, now {self.world.size})"
            return counters, [*(f"WARNING: {text}" for text in notes), note + changed]
        if notes:
            raise UserError(
                f"no checkpoint in {self.folder} can be used:\n" + "\n".join(f"  {note}" for note in notes) + "\n"
                "Restore one, or start a new run with another run.name or run.dir."
            )
        if initialization:
            notes += initialization.load(self.config, self.engine, self.world)
        else:
            engines.initialize(self.config, self.engine.fragments())
            self.engine.loaded(None)
        return Counters(), notes

    def roll_back(self) -> tuple[Counters | None, list[str]]:
        """Weights, moments and their counters as the newest valid checkpoint has them; lanes stay as they are.

        Returns the counters of that checkpoint, None if there is none, and what the user should be told.
        """
        failure = self.wait()
        notes = [f"an earlier checkpoint could not be written: {failure}"] if failure else []
        found = manifest.newest_valid(self.folder, self.world, notes.append)
        if not found:
            return None, notes
        self._load_engine(*found)
        return _counters(*found), notes

    def _load_lanes(self, reader: Reader) -> None:
        try:
            names = [str(lane) for lane in self.lanes.lanes]
            state = {
                "buffers": torch.stack([reader.lane(name) for name in names]),
                "rounds": torch.tensor([reader.content["rounds"][name] for name in names]),
            }
            if f"origins/{names[0]}" in reader.content["lanes"]:  # older checkpoints lack them
                state["origins"] = torch.stack([reader.lane(f"origins/{name}") for name in names])
            self.lanes.load_state(state)
        except (RuntimeError, KeyError) as error:  # buffers of another shape; a lane without its count
            raise manifest.InvalidCheckpoint(f"the lanes in {reader.path} do not fit: {error}") from None

    def _load_engine(self, path: Path, content: dict) -> Reader:
        reader = Reader(path, content)
        load_states(reader, self.engine.fragments(), self.config.model.block)
        try:
            self.engine.loaded(steps_taken(content))
        except (KeyError, ValueError) as error:
            raise manifest.InvalidCheckpoint(f"{path} counts no steps for {error}") from None
        return reader


def load_states(reader: Reader, fragments: Iterable[engines.Fragment], block: str) -> None:
    """Fill every fragment of a model of such blocks as `Reader.load` does, also from checkpoints of older versions.

    There a matrix that Muon left frozen has the states of AdamW and no momentum, which was zero.
    """
    frozen = _frozen_in_old(reader.content)
    for fragment in fragments:
        if MOMENTUM in fragment.tensors and described(fragment.name, block).part in frozen:
            reader.load([fragment], ["weight"])
            fragment.tensors[MOMENTUM].zero_()
        else:
            reader.load([fragment])


def _frozen_in_old(content: dict) -> list[str]:
    """The parts that were frozen, most likely from the start, in a checkpoint from before parts were counted."""
    optimizer = content["config"].get("optimizer")
    parts = optimizer.get("freeze") if isinstance(optimizer, dict) and "counts_parts" not in content else None
    return [part for part in parts if isinstance(part, str)] if isinstance(parts, list) else []


def steps_taken(content: dict) -> dict[int | str, int]:
    """The optimizer's step counts as an engine gave them; JSON has made texts of its numbers."""
    found = {int(key) if key.isdigit() else key: steps for key, steps in content["steps_taken"].items()}
    found.update({f"{group}/{part}": 0 for group in list(found) for part in _frozen_in_old(content)})
    return found


def _counters(path: Path, content: dict) -> Counters:
    if unknown := sorted(set(content["counters"]) - set(Counters.__dataclass_fields__)):
        raise manifest.InvalidCheckpoint(f"{path} is of a newer version: it counts {', '.join(unknown)}")
    return Counters(**content["counters"])
