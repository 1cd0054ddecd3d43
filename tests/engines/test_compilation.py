"""How often blocks are compiled while a run grows, by torch's own counters, under every engine that allows it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from tests import tiny
from tests.ranks import run_ranks
from upscale.distributed.world import World
from upscale.training import train_step

FSDP = {"engine__name": "fsdp"}
STAGE = {stage: {"engine__zero_stage": stage} for stage in (0, 1, 2)}
STEPS = ((12, 2), (12, 4), (24, 4), (24, 6), (48, 6))
"""Global batch and active blocks of each step: both grow, as the schedule makes them."""


def compilations(world: World, kinds: dict[str, dict], backend: str) -> dict[str, dict]:
    """What torch counted in the steps of STEPS, for every labelled set of changes to the config."""
    compile_module = nn.Module.compile
    nn.Module.compile = lambda module: compile_module(module, backend=backend)
    found = {}
    for label, changes in kinds.items():
        config = tiny.config(model__compile="true", model__dropout=0.1, **changes)
        torch._dynamo.reset()
        counters.clear()
        seen = []
        _, engine = train_step.build(config, world)
        run = train_step.Passes(config, world, engine, 0, micro_batch=2)
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
