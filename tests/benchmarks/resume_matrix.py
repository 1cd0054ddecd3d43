"""Resuming under another engine, stage and world: how far do the losses move from those of the uninterrupted run?

`python -m tests.benchmarks.resume_matrix --to docs/benchmarks/resume_matrix.json` lets four ranks train and save under
every engine and stage, and lets one to four ranks resume each of those checkpoints under each of them. Blocks wake
before and after the save, so that it holds sleeping parameters as well. The tests run parts of it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.engines import common
from tests.ranks import run_ranks
from upscale import engines
from upscale.checkpoint.manager import Counters, Saver
from upscale.config import Config
from upscale.data import lanes
from upscale.distributed.world import World
from upscale.model import parametrization
from upscale.optim.adamw import STATES

ENGINES = {
    **{f"deepspeed-{stage}": {"engine__name": "deepspeed", "engine__zero_stage": stage} for stage in (0, 1, 2, 3)},
    "fsdp": {"engine__name": "fsdp"},
}
WRITING_RANKS, READING_RANKS = 4, (1, 2, 3, 4)
STEPS_BEFORE, STEPS_AFTER = 10, 20
SEED = 3
"""Chosen as common.SEED is, for the rows and the 30 steps of these runs."""
LINEAR = torch.nn.functional.linear


@dataclass(frozen=True)
class Cell:
    """One way to resume: the engine that saved at WRITING_RANKS ranks, and the one that reads at `ranks`."""

    writer: str
    reader: str
    ranks: int

    @property
    def unchanged(self) -> bool:
        return self.writer == self.reader and self.ranks == WRITING_RANKS


CELLS = [Cell(*parts) for parts in itertools.product(ENGINES, ENGINES, READING_RANKS)]


def config(engine: str, **changes: object) -> Config:
    """The tiny config whose groups of blocks wake at steps 6 and 12, on lanes of noise and constants."""
    return common.config(
        run__seed=SEED,
        schedule__wake_every=72,
        data__sources="[{kind: uniform}]",
        checkpoint__asynchronous="false",
        **ENGINES[engine],
        **changes,
    )


class Session:
    """A trainer in small: engine, lanes, counters and saver of one rank."""

    def __init__(self, world: World, folder: Path, engine: str, **changes: object):
        # ZeRO 3 replaces this for the whole process, and its gradients reach ZeRO 2's buckets in another order.
        torch.nn.functional.linear = LINEAR
        self.world, self.config = world, config(engine, **changes)
        self.engine = engines.create(self.config, parametrization.build(self.config), world)
        owned = lanes.owned_lanes(self.config.data.lanes, world.rank, world.size)
        self.lanes = lanes.from_config(self.config, owned, world.device)
        self.saver = Saver(self.config, folder, world, self.engine, self.lanes)
        self.counters, _ = self.saver.resume()

    def save(self) -> None:
        failure = self.saver.save(self.counters.instances, self.counters) or self.saver.wait()
        assert not failure, failure

    def train(self, steps: int) -> list[float]:
        """The global loss of each step."""
        losses = []
        for _ in range(steps):
            rows, seen = self.lanes.draw(1), self.counters.instances
            loss, report = common.train_step(self.engine, self.world, self.config, rows, seen)
            assert report.applied
            self.counters = Counters(self.counters.step + 1, seen + common.BATCH)
            losses.append(loss)
        return losses


def save_each(world: World, folder: Path, names: list[str], steps: int) -> dict[str, list[float]]:
    """Train and save under every engine; the losses of `steps` further steps without an interruption."""
    found = {}
    for name in names:
        session = Session(world, folder / name, name)
        session.train(STEPS_BEFORE)
        session.save()
        found[name] = session.train(steps)
    return found


def resume_each(world: World, folder: Path, cells: list[Cell], steps: int) -> list[list[float]]:
    """The losses of `steps` steps after resuming in each cell."""
    found = []
    for cell in cells:
        session = Session(world, folder / cell.writer, cell.reader)
        assert session.counters.step == STEPS_BEFORE
        found.append(session.train(steps))
    return found


def save_and_resume(
    world: World, folder: Path, names: list[str], cells: list[Cell], steps: int
) -> tuple[dict[str, list[float]], list[list[float]]]:
    """Both in the same processes."""
    return save_each(world, folder, names, steps), resume_each(world, folder, cells, steps)


def control(world: World, folder: Path, steps: int) -> float:
    """What the difference is for a resume that forgets Adam's moments."""
    expected = save_each(world, folder, ["fsdp"], steps)["fsdp"]
    session = Session(world, folder / "fsdp", "fsdp")
    for fragment in session.engine.fragments():
        for state in STATES:
            fragment.tensors[state].zero_()
    return difference(session.train(steps), expected)


def difference(losses: list[float], expected: list[float]) -> float:
    """The largest relative difference; 0.0 means that every bit is equal."""
    return max(abs(here - there) / abs(there) for here, there in zip(losses, expected, strict=True))


def measure(folder: Path, cells: list[Cell], steps: int = STEPS_AFTER, fresh: bool = True) -> dict[Cell, float]:
    """The largest relative difference of a loss from the uninterrupted run, for each cell.

    Every world starts processes of its own; without `fresh` those that saved also resume in the world that saved.
    """
    at_once = [] if fresh else [cell for cell in cells if cell.ranks == WRITING_RANKS]
    names = list(dict.fromkeys(cell.writer for cell in cells))
    expected, resumed = run_ranks(save_and_resume, WRITING_RANKS, folder, names, at_once, steps, timeout_seconds=900)[0]
    losses = dict(zip(at_once, resumed, strict=True))
    for ranks in READING_RANKS:
        if chosen := [cell for cell in cells if cell.ranks == ranks and cell not in losses]:
            resumed = run_ranks(resume_each, ranks, folder, chosen, steps, timeout_seconds=1800)[0]
            losses.update(zip(chosen, resumed, strict=True))
    return {cell: difference(losses[cell], expected[cell.writer]) for cell in cells}


def main() -> None:
    import deepspeed

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=Path("docs/benchmarks/resume_matrix.json"), help="file to write")
    to = parser.parse_args().to
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), CELLS)
        forgetful = run_ranks(control, 1, Path(folder) / "control", STEPS_AFTER)[0]
    record = {
        "what": "largest relative difference of a training loss from the uninterrupted run; 0 means bit-equal",
        "setting": f"saved by {WRITING_RANKS} ranks after {STEPS_BEFORE} steps, {STEPS_AFTER} steps resumed, fp32, "
        f"gloo on CPUs, groups of blocks waking at steps 6 and 12, seed {SEED}, see SEED",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "deepspeed": deepspeed.__version__,
        },
        "largest": max(found.values()),
        "bit_equal_where_nothing_changed": all(value == 0 for cell, value in found.items() if cell.unchanged),
        "control_without_moments": forgetful,
        "cells": {
            f"{ranks} ranks": {
                f"written by {writer}": {
                    f"read by {cell.reader}": value
                    for cell, value in found.items()
                    if (cell.ranks, cell.writer) == (ranks, writer)
                }
                for writer in ENGINES
            }
            for ranks in READING_RANKS
        },
    }
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({key: value for key, value in record.items() if key != "cells"}, indent=1))


if __name__ == "__main__":
    main()
