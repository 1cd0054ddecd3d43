"""How often blocks are compiled while a run grows, by torch's own counters, under every engine that allows it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from tests import tiny
from tests.ranks import run_ranks
from upscale import schedule
from upscale.config import files as config_files
from upscale.distributed.world import World
from upscale.training import train_step

FSDP = {"engine__name": "fsdp"}
STAGE = {stage: {"engine__zero_stage": stage} for stage in (0, 1, 2)}
STEPS = ((12, 2), (12, 4), (24, 4), (24, 6), (48, 6))
"""Global batch and active blocks of each step: both grow, as the schedule makes them."""


def compilations(world: World, kinds: dict[str, dict], backend: str) -> dict[str, dict]:
    """What torch counted in the steps of STEPS, for every labelled set of changes to the config."""
    compile_module = nn.Module.compile
    nn.Module.compile = lambda module, **how: compile_module(module, backend=backend, **how)
    found = {}
    for label, changes in kinds.items():
        config = tiny.config(model__compile="true", model__dropout=0.1, **changes)
        torch._dynamo.reset()
        counters.clear()
        seen = []
        _, engine = train_step.build(config, world)
        run = train_step.Microbatches(config, world, engine, 0, micro_batch=2)
        generator = torch.Generator().manual_seed(world.rank)
        for step, (batch, active) in enumerate(STEPS):
            rows = torch.randint(0, 256, (train_step.most_rows(config, world.size, batch), 17), generator=generator)
            run.backpropagate(rows, batch, active, step)
            assert engine.step(1.0, active).applied
            seen.append(counters["stats"]["unique_graphs"])
        breaks = {**counters["graph_break"], **counters["recompile_limit"]}
        found[label] = {"graphs after each step": seen, "breaks": breaks}
    return found


def check(kinds: dict[str, dict], backend: str) -> None:
    """One graph serves all blocks, gated or not, from the first step on."""
    once = {"graphs after each step": [1] * len(STEPS), "breaks": {}}
    for found in run_ranks(compilations, 2, kinds, backend, timeout_seconds=900):
        assert found == dict.fromkeys(kinds, once)


def test_nothing_is_traced_anew_while_the_batch_grows_and_groups_wake():
    """Tracing decides what is compiled; nothing is compiled here, for time."""
    check({"stage 1": STAGE[1], "fsdp": FSDP}, "eager")


def traced_shapes(world: World, evaluation_first: bool) -> list[tuple[int, ...]]:
    """The shapes of each traced graph's first input, evaluated at one position less and trained; none symbolic."""
    shapes = []

    def backend(graph: torch.fx.GraphModule, inputs: list):
        assert not [one for one in inputs if isinstance(one, torch.SymInt)]
        sizes = next(tuple(one.shape) for one in inputs if isinstance(one, torch.Tensor) and one.ndim == 3)
        assert all(type(size) is int for size in sizes), sizes
        shapes.append(sizes)
        return graph.forward

    compile_module = nn.Module.compile
    nn.Module.compile = lambda module, **how: compile_module(module, backend=backend, **how)
    config = tiny.config(model__compile="true")
    _, engine = train_step.build(config, world)
    run = train_step.Microbatches(config, world, engine, 0, micro_batch=2)

    def evaluate() -> None:
        engine.train_mode(False)
        with torch.no_grad():
            engine.logits(torch.zeros(2, config.model.context - 1, dtype=torch.long), 6, last_only=True)

    if evaluation_first:
        evaluate()
    for step in range(2):
        run.backpropagate(torch.zeros(12, 17, dtype=torch.uint8), 12, 6, step)
        engine.step(1.0, 6)
    if not evaluation_first:
        evaluate()
    return shapes


@pytest.mark.parametrize("evaluation_first", [True, False])
def test_evaluations_shorter_input_makes_no_length_symbolic(evaluation_first):
    """One static graph for training and one for evaluation, whichever comes first."""
    (shapes,) = run_ranks(traced_shapes, 1, evaluation_first, timeout_seconds=600)
    assert shapes == [(2, 15, 32), (2, 16, 32)][:: 1 if evaluation_first else -1]


@pytest.mark.parametrize("name", ["w384", "w1024", "w4096", "finetune_wp", "smoke"])
def test_few_compiled_sizes_pad_by_less_than_a_twentieth_of_the_work(name):
    """Every batch of the shipped schedules, in several worlds and micro-batches; the work is counted here anew."""
    config = config_files.load(f"configs/{name}.yaml", []).resolved()
    schedule_, model = config.schedule, config.model
    for ranks, share in ((1, 1), (8, 1), (8, 3), (64, 1)):
        ranks = min(ranks, config.data.lanes)
        micro_batch = math.ceil(train_step.most_rows(config, ranks) / share)
        sizes = train_step.compiled_sizes(config, ranks, micro_batch)
        assert len(sizes) <= train_step.MOST_COMPILED_SIZES and max(sizes) <= micro_batch
        computed = needed = seen = 0
        while seen < schedule_.instances:
            batch = schedule.batch_size(seen, schedule_, config.data.lanes)
            rows = batch // config.data.lanes * math.ceil(config.data.lanes / ranks)
            blocks = schedule.active_blocks(seen, schedule_, model)
            count = -(-rows // micro_batch)
            computed += blocks * count * next(size for size in sizes if size * count >= rows)
            needed, seen = needed + blocks * rows, seen + batch
        assert computed <= 1.05 * needed, (name, ranks, micro_batch, sizes, computed / needed)


@pytest.mark.slow
def test_nothing_is_compiled_anew_while_the_batch_grows_and_groups_wake():
    """The same through the compiler that trains, at every stage that is compiled, and with checkpointing and keys."""
    check(
        {
            **{f"stage {stage}": changes for stage, changes in STAGE.items()},
            "fsdp": FSDP,
            "fsdp, full": {**FSDP, "model__checkpointing": "full"},
            "fsdp, selective": {**FSDP, "model__checkpointing": "selective"},
            "stage 1, keyed by row": {**STAGE[1], "model__dropout_keys": "row"},
        },
        "inductor",
    )
