"""Blocks other than the paper's under every engine and stage, against a plain single-process trainer."""

from __future__ import annotations

import pytest

from tests.engines import common
from tests.ranks import run_ranks

KINDS = {
    **{f"stage {stage}": {"engine__zero_stage": stage} for stage in (0, 1, 2, 3)},
    "fsdp": {"engine__name": "fsdp"},
    "fsdp, recomputed": {"engine__name": "fsdp", "model__checkpointing": "full"},
}


@pytest.mark.parametrize("block", ["llama", "prenorm"])
@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_losses_and_weights_equal_the_plain_trainer(block, size):
    """fp32, with accumulation, clipping, muP groups and two wakings."""
    kinds = {label: {**changes, "model__block": block} for label, changes in KINDS.items()}
    per_rank = run_ranks(common.train_each, size, kinds, timeout_seconds=400)
    for label in kinds:
        common.assert_equals_plain_trainer([rank[label] for rank in per_rank], label, model__block=block)
