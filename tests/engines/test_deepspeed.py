"""DeepSpeed at every stage and world against tests/reference/training.py, a plain single-process trainer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import tiny
from tests.engines import common
from tests.ranks import run_ranks
from upscale import engines, planning
from upscale.config import files as config_files
from upscale.distributed.world import World
from upscale.engines import buckets
from upscale.errors import UserError
from upscale.model import parametrization
from upscale.planning import memory

STAGES = {f"stage {stage}": {"engine__zero_stage": stage} for stage in (0, 1, 2, 3)}


@pytest.mark.parametrize(
    "size", [1, 2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_losses_and_weights_equal_the_plain_trainer(size):
    """fp32, stages 0 to 3, with accumulation, clipping, muP groups and two wakings."""
    per_rank = run_ranks(common.train_each, size, STAGES)
    for label in STAGES:
        common.assert_equals_plain_trainer([rank[label] for rank in per_rank], label)


@pytest.mark.parametrize("stages", [[3], pytest.param([0, 1, 2], marks=pytest.mark.slow)])
def test_activation_checkpointing_changes_nothing(stages):
    """At stage 3 a block's weights are gathered once more for what is computed again."""
    kinds = {
        f"stage {stage}, {mode}": {"engine__zero_stage": stage, "model__checkpointing": mode}
        for stage in stages
        for mode in ("selective", "full")
    }
    per_rank = run_ranks(common.train_each, 2, kinds)
    for label in kinds:
        common.assert_equals_plain_trainer([rank[label] for rank in per_rank], label)


def test_overlap_and_buckets_change_nothing():
    """With buckets of 2 000 numbers, through which larger matrices do not fit, and of 15 000, in several turns."""
    kinds = {
        f"stage {stage}, {bucket}, overlap {overlap}": {
            "engine__bucket": bucket,
            "engine__prefetch_blocks": 2,
            "engine__zero_stage": stage,
            "engine__overlap": overlap,
        }
        for stage, bucket, overlap in ((1, 2000, "true"), (2, 15_000, "true"), (2, 2000, "false"), (3, 2000, "false"))
    }
    per_rank = run_ranks(common.train_each, 2, kinds)
    for label in kinds:
        common.assert_equals_plain_trainer([rank[label] for rank in per_rank], label)


def test_stage_2_overlaps_where_asked_and_only_what_fits_its_bucket():
    """It waits in every pass; of what is larger it frees the gradient while another stream still reduces it (by reading
    DeepSpeed 0.19.8)."""
    known = {(0, "auto"): 0, (1, "auto"): 1, (2, "auto"): 0, (3, "auto"): 1, (1, 9): 1, (2, 9): 0}
    for (stage, bucket), expected in known.items():
        assert buckets.overlaps(common.config(engine__zero_stage=stage, engine__bucket=bucket)) == expected
    assert buckets.overlaps(common.config(engine__zero_stage=2, engine__overlap="true"))
    with pytest.raises(UserError, match=r"needs an engine.bucket of 12,\d+ or more for this model, given 9"):
        buckets.overlaps(common.config(engine__zero_stage=2, engine__bucket=9, engine__overlap="true"))
    wide = common.config(model__vocabulary=32768, model__width=1024, engine__zero_stage=2)
    assert buckets.reduced_at_once(wide) == 32768 * 1024


def test_one_rank_has_nothing_to_share():
    """Stages 1 and 2 would only copy what stage 0 trains in place; at stage 3 a rank's own layout is kept."""
    asked = {stage: common.config(engine__zero_stage=stage) for stage in range(4)}
    assert [buckets.stage(config, 1) for config in asked.values()] == [0, 0, 0, 3]
    assert [buckets.stage(config, 2) for config in asked.values()] == [0, 1, 2, 3]
    planned = [memory.state_bytes(config, 1) for config in asked.values()]
    assert planned[1] == planned[2] == planned[0]


def bucket_buffers(world: World) -> dict[int, int]:
    """Most numbers in the buffers that DeepSpeed makes for reducing in a step, by stage."""
    found = {}
    for stage in (1, 2, 3):
        config = common.config(engine__zero_stage=stage)
        engine = engines.create(config, parametrization.build(config), world)
        [bucket] = engine.zero.ipg_buckets.values()
        sizes = []

        def watched(reduce: Callable, bucket=bucket, sizes=sizes) -> Callable:
            def reducing(*arguments, **keywords):
                buffers = bucket.buffer if isinstance(bucket.buffer, list) else [bucket.buffer]
                sizes.append(sum(buffer.numel() for buffer in buffers))
                return reduce(*arguments, **keywords)

            return reducing

        name = "reduce_ready_partitions_and_remove_grads"
        setattr(engine.zero, name, watched(getattr(engine.zero, name)))
        common.train_step(engine, world, config, common.global_rows(0)[:6], 0)
        found[stage] = max(sizes)
    return found


def test_buckets_are_as_large_as_the_model_needs():
    """Against the buffers themselves, two for overlap at stage 1, where DeepSpeed's default is 500 million."""
    expected = planning.parameters(common.config().model)
    assert run_ranks(bucket_buffers, 2)[0] == {1: 2 * expected, 2: expected, 3: expected}
    sizes = {
        name: buckets.reduced_at_once(config_files.load(f"configs/{name}.yaml", []).resolved())
        for name in ("w384", "w1024", "w2048", "w4096")
    }
    assert sizes == {"w384": 1 << 24, "w1024": 1 << 24, "w2048": 50_352_128, "w4096": 201_367_552}


def test_three_ranks_with_uneven_shares():
    """Four rows each split as 2 + 2, and parameters that three does not divide, against the plain trainer."""
    common.assert_equals_plain_trainer(run_ranks(common.train, 3, common.config(engine__zero_stage=2)), "stage 2")


def test_bf16_stays_close_at_every_stage():
    """Against the plain trainer in fp32: near, and not the same by accident."""
    losses = common.plain_run()[0][:12]
    stages = {label: {**kind, "engine__precision": "bf16"} for label, kind in STAGES.items()}
    for label, result in run_ranks(common.train_each, 2, stages, 12)[0].items():
        assert result["losses"] == pytest.approx(losses, rel=2e-3), label
        assert result["losses"] != pytest.approx(losses, rel=1e-7), label


def test_a_nan_on_one_rank_skips_the_step_on_every_rank():
    """The poisoned step changes neither weights nor Adam's counters, and the run goes on."""
    per_rank = run_ranks(common.train_each, 2, STAGES, 10, 5)
    for label in STAGES:
        common.assert_skipped([rank[label] for rank in per_rank], label)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_coordinates_are_flat_under_sharding(stage):
    """Against the plain coordinate check: muP's learning rates survive ZeRO's flattening and partitioning."""
    sharded = run_ranks(common.slopes_under, 2, {"engine__zero_stage": stage}, timeout_seconds=400)[0]
    common.assert_slopes_equal(sharded, common.slopes_without_engine())


def test_another_deepspeed_is_refused(monkeypatch):
    import deepspeed

    monkeypatch.setattr(deepspeed, "__version__", "0.18.0")
    with pytest.raises(UserError, match="deepspeed 0.18.0 is installed.*pip install deepspeed=="):
        engines.create(tiny.config(), parametrization.build(tiny.config()), World.single())
