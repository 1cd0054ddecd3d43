"""FSDP2 in every arrangement and world against tests/reference/training.py, a plain single-process trainer."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor.debug import CommDebugMode

from tests.engines import common
from tests.ranks import run_ranks
from upscale import engines
from upscale.distributed.world import World
from upscale.engines import fsdp
from upscale.errors import UserError
from upscale.model import parametrization
from upscale.optim.adamw import STATES

FSDP = {"engine__name": "fsdp"}
KEPT = {**FSDP, "engine__reshard": "false"}
RECOMPUTED = {**FSDP, "model__checkpointing": "full"}
SELECTIVE = {**FSDP, "model__checkpointing": "selective"}
AHEAD = {**FSDP, "engine__prefetch_blocks": 3}
HYBRID = {**FSDP, "engine__shard_ranks": 2}
REPLICATED = {**KEPT, "engine__shard_ranks": 1}


def train_with_both_gathers(world: World, steps: int) -> tuple[list[float], list[float]]:
    """Losses in bf16 with matrices gathered in bfloat16, and then with everything gathered in float32."""
    config = common.config(**FSDP, engine__precision="bf16")
    cast = common.train(world, config, steps)["losses"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fsdp, "_precision", lambda *_: MixedPrecisionPolicy(reduce_dtype=torch.float32))
        return cast, common.train(world, config, steps)["losses"]


def evaluate_and_write(world: World, kind: dict) -> list[torch.Tensor]:
    """Logits of the last position in eval mode: fresh, after a step, and after all weights were written to zero."""
    config = common.config(**kind)
    engine = engines.create(config, parametrization.build(config), world)
    found = []

    def evaluate() -> None:
        engine.train_mode(False)
        with torch.no_grad():
            found.append(engine.logits(common.global_rows(0)[:, :-1], 6, last_only=True))

    evaluate()
    engine.train_mode(True)
    engine.backward(engine.logits(common.global_rows(0)[:, :-1], 6).square().mean() / world.size, last=True)
    assert engine.step(1.0, 2).applied
    evaluate()
    for fragment in engine.fragments():
        fragment.tensors["weight"].zero_()
    engine.loaded(None)
    evaluate()
    return found


def held(world: World) -> dict[str, int]:
    """How many elements of each parameter this rank holds before any step, with moments of zero."""
    config = common.config(**FSDP)
    engine = engines.create(config, parametrization.build(config), world)
    fragments = list(engine.fragments())
    assert not any(f.tensors[state].any() for f in fragments for state in STATES)
    assert all(f.tensors[state].dtype == torch.float32 for f in fragments for state in ("weight", *STATES))
    return {f.name: f.tensors["weight"].numel() for f in fragments}


def traffic(world: World, kind: dict) -> dict[str, int]:
    """How often a step (at two ranks three micro-batches, at four two) gathers weights and reduces gradients, with two
    of the six blocks awake."""
    config = common.config(**kind)
    engine = engines.create(config, parametrization.build(config), world)
    with CommDebugMode() as counted:
        common.train_step(engine, world, config, common.global_rows(0).tensor_split(world.size)[world.rank], 0)
    names = {"gathered": "allgather", "reduced": "reduce_scatter", "summed": "allreduce"}
    counts = counted.get_comm_counts().items()
    return {key: sum(n for operation, n in counts if name in str(operation)) for key, name in names.items()}


def gradient_shares(world: World, kind: dict) -> list[float]:
    """After each of three backward passes: elements of gradient storage on this rank, as a share of all parameters."""
    config = common.config(**kind)
    engine = engines.create(config, parametrization.build(config), world)
    found = []
    for index in range(3):
        loss = engine.logits(common.global_rows(index)[:2, :-1], 6).square().mean() / world.size
        engine.backward(loss, last=index == 2)
        storages = {}
        for group in (group for unit in engine.units for group in unit._get_fsdp_state()._fsdp_param_groups):
            whole = [getattr(part, "_unsharded_param", None) for part in group.fsdp_params]
            held = [part.unsharded_accumulated_grad for part in group.fsdp_params]
            held += [parameter.grad for parameter in whole if parameter is not None]
            held += [group._partial_reduce_output]
            held += [part.sharded_param.grad for part in group.fsdp_params]
            for tensor in (tensor for tensor in held if tensor is not None):
                local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
                storages[local.untyped_storage().data_ptr()] = local.untyped_storage().nbytes() / 4
        found.append(sum(storages.values()) / sum(common.sizes().values()))
    engine.step(1.0, 2)
    return found


def two_ranks(world: World) -> dict[str, object]:
    """Everything that is tested at two ranks, in one start of the processes."""
    return {
        **common.train_each(
            world,
            {
                "resharded": FSDP,
                "kept": KEPT,
                "recomputed": RECOMPUTED,
                "selective": SELECTIVE,
                "gathered ahead": AHEAD,
            },
        ),
        "poisoned": common.train(world, common.config(**KEPT), 10, 5),
        "evaluations": {"resharded": evaluate_and_write(world, FSDP), "kept": evaluate_and_write(world, KEPT)},
        "traffic": {"resharded": traffic(world, FSDP), "kept": traffic(world, KEPT), "ahead": traffic(world, AHEAD)},
        "bf16": train_with_both_gathers(world, 12),
        "gradients": {"resharded": gradient_shares(world, FSDP), "kept": gradient_shares(world, KEPT)},
    }


def three_ranks(world: World) -> dict[str, dict]:
    return {"resharded": common.train(world, common.config(**FSDP)), "held": held(world)}


def four_ranks(world: World) -> dict[str, dict]:
    return {
        **common.train_each(world, {"resharded": FSDP, "hybrid": HYBRID}),
        "poisoned": common.train(world, common.config(**HYBRID), 10, 5),
        "traffic": traffic(world, HYBRID),
        "gradients": {"resharded": gradient_shares(world, FSDP), "hybrid": gradient_shares(world, HYBRID)},
    }


@pytest.fixture(scope="module")
def two() -> list[dict]:
    return run_ranks(two_ranks, 2)


@pytest.fixture(scope="module")
def three() -> list[dict]:
    return run_ranks(three_ranks, 3)


@pytest.fixture(scope="module")
def four() -> list[dict]:
    return run_ranks(four_ranks, 4)


def test_one_rank_equals_the_plain_trainer():
    """fp32, with accumulation, clipping, muP groups and two wakings."""
    common.assert_equals_plain_trainer(run_ranks(common.train, 1, common.config(**FSDP)), "resharded")


def test_three_ranks_equal_the_plain_trainer(three):
    """With rows of the batch and of the parameters that three ranks share unevenly."""
    common.assert_equals_plain_trainer([rank["resharded"] for rank in three], "resharded")


@pytest.mark.parametrize("label", ["resharded", "kept", "recomputed", "selective", "gathered ahead"])
def test_two_ranks_equal_the_plain_trainer(two, label):
    """With and without resharding after the forward pass, and with activation checkpointing."""
    common.assert_equals_plain_trainer([rank[label] for rank in two], label)


@pytest.mark.parametrize("label", ["resharded", "hybrid"])
def test_four_ranks_equal_the_plain_trainer(four, label):
    """Sharded over all four, and over two with two copies, where copies must stay equal and be saved once."""
    common.assert_equals_plain_trainer([rank[label] for rank in four], label)


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 4])
def test_every_other_arrangement_equals_the_plain_trainer(size):
    """No resharding, copies only, and activation checkpointing at three and four ranks."""
    kinds = {"kept": KEPT, "replicated": REPLICATED, "recomputed": RECOMPUTED}
    per_rank = run_ranks(common.train_each, size, kinds)
    for label in kinds:
        common.assert_equals_plain_trainer([rank[label] for rank in per_rank], label)


def test_a_nan_on_one_rank_skips_the_step_on_every_rank(two, four):
    """The poisoned step changes neither weights nor Adam's counters, also on ranks that hold another copy."""
    common.assert_skipped([rank["poisoned"] for rank in two], "kept")
    common.assert_skipped([rank["poisoned"] for rank in four], "hybrid")


def test_bf16_is_close_and_gathering_it_changes_no_bit(two):
    """Against the plain trainer in fp32, and against gathering in fp32 and casting afterwards as DeepSpeed does."""
    cast, cast_later = two[0]["bf16"]
    assert cast == cast_later
    losses = common.plain_run()[0][:12]
    assert cast == pytest.approx(losses, rel=2e-3)
    assert cast != pytest.approx(losses, rel=1e-7)


def test_gradients_are_scattered_in_every_pass_and_sleeping_blocks_never(two, four):
    """Of three micro-batches, at four ranks two. Three units take part: two blocks, gathered once or twice each time,
    and the rest.

    Two sums over ranks are the loss and the gradient's norm; hybrid, copies of three units' shards are summed once.
    """
    for rank in two:
        assert rank["traffic"]["kept"] == {"gathered": 3, "reduced": 9, "summed": 2}
        assert rank["traffic"]["resharded"] == {"gathered": 3 * (2 * 2 + 1), "reduced": 9, "summed": 2}
        assert rank["traffic"]["ahead"] == rank["traffic"]["resharded"]
    for rank in four:
        assert rank["traffic"] == {"gathered": 2 * (2 * 2 + 1), "reduced": 6, "summed": 3 + 2}


def test_a_rank_holds_its_share_of_the_gradient_between_passes(two, four):
    """Against one divided by the ranks that shard, after each pass: a gradient kept whole would be 1 and more.

    A fifth is allowed on top: rows are padded to a multiple of the shards, and single numbers are on one rank alone.
    """
    for ranks, label, shards in ((two, "resharded", 2), (two, "kept", 2), (four, "resharded", 4), (four, "hybrid", 2)):
        for rank in ranks:
            shares = rank["gradients"][label]
            assert len(shares) == 3
            assert all(0.9 / shards <= share <= 1.2 / shards for share in shares), f"{label}: {shares}"


@pytest.mark.parametrize("label", ["resharded", "kept"])
def test_evaluation_uses_current_weights(two, label):
    """Against the unsharded model before a step, and against zero after writing zeros: nothing gathered goes stale."""
    with torch.no_grad():
        expected = parametrization.build(common.config())(common.global_rows(0)[:, :-1], 6, last_only=True)
    for rank in two:
        before, after, zero = rank["evaluations"][label]
        assert before.shape == (common.BATCH, 1, 256)
        torch.testing.assert_close(before, expected, atol=1e-6, rtol=1e-5)
        assert (after - before).abs().max() > 1e-3
        assert not zero.any()


@pytest.mark.slow
def test_compiled_blocks_train_the_same():
    """Against the plain trainer; blocks are compiled before they are sharded, as the trainer does."""
    kinds = {"resharded": FSDP, "recomputed": RECOMPUTED, "selective": SELECTIVE}
    per_rank = run_ranks(common.train_each, 2, kinds, common.STEPS, None, True, timeout_seconds=400)
    for label in kinds:
        common.assert_equals_plain_trainer([rank[label] for rank in per_rank], label)


def test_each_rank_holds_its_rows_only(three):
    """Of 32 rows three ranks hold 11, 11 and 10; of one row the first rank alone holds anything."""
    per_rank = [rank["held"] for rank in three]
    assert [rank["blocks.0.attention_norm.bias"] for rank in per_rank] == [11, 11, 10]
    assert [rank["blocks.0.attention.project_out.weight"] for rank in per_rank] == [352, 352, 320]
    assert ["blocks.2.gate" in rank for rank in per_rank] == [True, False, False]
    assert sum(sum(rank.values()) for rank in per_rank) == sum(common.sizes().values())
    assert max(sum(rank.values()) for rank in per_rank) <= math.ceil(1.05 * sum(common.sizes().values()) / 3)


@pytest.mark.slow
def test_coordinates_are_flat_under_sharding():
    """Against the plain coordinate check: muP's learning rates survive the replacement of every parameter."""
    sharded = run_ranks(common.slopes_under, 2, FSDP, timeout_seconds=400)[0]
    common.assert_slopes_equal(sharded, common.slopes_without_engine())


@pytest.mark.parametrize(("ranks", "shards"), [(3, 2), (2, 4)])
def test_shards_that_do_not_divide_the_world_are_refused(ranks, shards):
    config = common.config(**FSDP, engine__shard_ranks=shards)
    with pytest.raises(UserError, match=f"engine.shard_ranks = {shards} does not divide the world of {ranks} ranks"):
        engines.create(config, parametrization.build(config), World(0, ranks, torch.device("cpu"), "test"))
