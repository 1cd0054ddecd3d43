"""Requests to stop at chosen places of a run, on real ranks: what is owed is done later, and exactly once.

A rank asks itself where a signal would have come, so that the place is the same every time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

from tests import tiny
from tests.ranks import run_ranks
from upscale import planning, train
from upscale.checkpoint import manifest
from upscale.config import files as config_files
from upscale.data import training_rows
from upscale.distributed.world import World
from upscale.evaluation import suite
from upscale.launch import signals

EVALUATED = {"evaluation__every": 24, "evaluation__slices": 30, "evaluation__tasks": ["aut", "wp"]}
EVALUATED |= {"engine__name": "fsdp", "schedule__instances": 60, "checkpoint__every_steps": 2}


def trainer(world: World, words: list[str]) -> train.Trainer:
    config = config_files.load(None, words).resolved()
    every, tasks = config.evaluation.every, config.evaluation.tasks
    datasets = suite.datasets(tasks, characters=2000) if every else []
    return train.Trainer(config, world, datasets, training_rows.open_rows(config), None, signals.StopRequest())


def run(world: World, words: list[str], place: str | None = None, count: int = 0, asked: int = 0) -> int:
    """The exit code of a training whose rank `asked` is asked to stop in the `count`-th pass through `place`."""
    made = trainer(world, words)
    passed = 0

    def ask(real: Callable) -> Callable:
        def call(*arguments, **options):
            nonlocal passed
            passed += 1
            if passed == count and world.rank == asked:
                made.stop.signal = "SIGTERM"
            return real(*arguments, **options)

        return call

    if place == "backward":
        made.microbatches.backpropagate = ask(made.microbatches.backpropagate)
    elif place == "batch":
        made.evaluation_progress = ask(made.evaluation_progress)
    with made.watchdog:
        code = made.run()
    world.barrier()  # the first rank writes, and both read
    return code


def evaluated(directory: Path) -> list[tuple]:
    """Every record but what no two runs share."""
    records = [json.loads(line) for line in (directory / "evaluations.jsonl").read_text().splitlines()]
    return [(record["step"], record["task"], record["bits_per_character"]) for record in records]


def counters(directory: Path) -> dict:
    steps = manifest.steps(directory / "checkpoints")
    return manifest.read(manifest.step_folder(directory / "checkpoints", steps[-1]))["counters"]


# Where the request comes: the Markov baselines are the first passes of an evaluation, then come its batches.
STOPS = {
    "a step with an evaluation": ("backward", 2, 2),
    "the last step": ("backward", 5, 5),
    "the first baseline": ("batch", 1, 0),
    "the first batches": ("batch", 4, 0),
    "the batches of step 2": ("batch", 20, 2),
}
HALF = "half recorded"


def play(world: World, folder: Path) -> dict:
    """Everything that these tests look at, in one pair of ranks: starting one costs seconds."""

    def words(name: str, **changes: object) -> list[str]:
        return tiny.overrides(run__dir=folder / name, **{**EVALUATED, **changes})

    found: dict = {"uninterrupted": run(world, words("uninterrupted"))}
    for name, (place, count, step) in STOPS.items():
        first = run(world, words(name), place, count, asked=1)
        left = (evaluated(folder / name), counters(folder / name)) if step else None
        world.barrier()
        again = run(world, words(name))
        second = evaluated(folder / name)
        world.barrier()
        found[name] = (first, left, again, second, run(world, words(name)), evaluated(folder / name))
        world.barrier()  # and both have read
    found[HALF] = [run(world, words(HALF), "backward", 4)]
    if world.is_main:  # as after a crash between the records and the note in the checkpoint that they are there
        half = {"step": 4, "instances": 48, "task": "aut", "split": "generated", "bits_per_character": 1.0}
        with open(folder / HALF / "evaluations.jsonl", "a") as file:
            file.write(json.dumps(half) + "\n")
    world.barrier()
    found[HALF].append(run(world, words(HALF)))
    for name, changes in {"fsdp": {}, "zero3": {"engine__name": "deepspeed", "engine__zero_stage": 3}}.items():
        found[name] = run_with_unequal_memory(world, words(name, **changes, engine__micro_batch="auto"))
    found["decisions"] = count_decisions(world, words("decisions", evaluation__every=0, tracking__log_every=100))
    return found


def run_with_unequal_memory(world: World, words: list[str]) -> tuple[int, int]:
    real, planning.micro_batch = planning.micro_batch, lambda *_arguments: 3 - world.rank
    try:
        made = trainer(world, words)
        with made.watchdog:
            return made.run(), made.micro_batch
    finally:
        planning.micro_batch = real


def count_decisions(world: World, words: list[str]) -> list[tuple[int, int]]:
    """For each of the steps 2 to 4: decisions that the step waited for on the spot, and those asked ahead."""
    made = trainer(world, words)
    counts, real, step = [], dist.all_reduce, made.microbatches.backpropagate

    def all_reduce(*arguments, **options):
        if options.get("op") == dist.ReduceOp.MAX and counts:
            counts[-1][bool(options.get("async_op"))] += 1
        return real(*arguments, **options)

    def backpropagate(*arguments):
        counts.append([0, 0])
        return step(*arguments)

    made.microbatches.backpropagate, dist.all_reduce = backpropagate, all_reduce
    try:
        with made.watchdog:
            made.run()
    finally:
        dist.all_reduce = real
    return [tuple(count) for count in counts[1:4]]


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> tuple[dict, Path]:
    """What one of two ranks found (both alike), and the folder of the runs."""
    folder = tmp_path_factory.mktemp("runs")
    first, second = run_ranks(play, 2, folder, timeout_seconds=500)
    assert first == second
    return first, folder


def complete(folder: Path) -> list[tuple]:
    """The evaluations of the run that was never stopped: at steps 0, 2, 4 and at the end, step 5."""
    found = evaluated(folder / "uninterrupted")
    assert [record[:2] for record in found] == [(step, task) for step in (0, 2, 4, 5) for task in ("aut", "wp")]
    return found


@pytest.mark.parametrize("name", STOPS)
def test_an_evaluation_that_is_owed_is_done_by_the_next_start(played, name):
    """Against the run that was never stopped: all evaluations, each once, of the same weights; then never again."""
    found, folder = played
    first, left, again, second, third, last = found[name]
    assert (first, again, third) == (75, 0, 0)
    if left:
        assert left[1]["step"] == STOPS[name][2] and left[1]["evaluation_owed"]
        assert all(step < STOPS[name][2] for step, _, _ in left[0])
    assert second == last == complete(folder)
    assert not counters(folder / name)["evaluation_owed"]
    assert (folder / name / "log.txt").read_text().count("finished before") == 1


def test_an_owed_evaluation_that_was_half_recorded_is_recorded_once(played):
    found, folder = played
    assert found[HALF] == [75, 0] and evaluated(folder / HALF) == complete(folder)


@pytest.mark.parametrize("engine", ["fsdp", "zero3"])
def test_ranks_with_unequal_memory_make_equally_many_passes(played, engine):
    """Six rows a rank: two passes of three rows here and three of two there would wait for each other for ever."""
    found, folder = played
    assert found[engine] == (0, 2)
    for record, expected in zip(evaluated(folder / engine), complete(folder), strict=True):
        assert record == (*expected[:2], pytest.approx(expected[2], rel=1e-4))


def test_no_step_waits_for_a_decision(played):
    """Steps that are not logged: whether to stop is asked once and answered while the step is taken."""
    assert played[0]["decisions"] == [(0, 1)] * 3
