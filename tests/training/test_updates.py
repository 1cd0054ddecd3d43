"""How large an update is beside its weights, against whole copies of the weights, under every engine."""

from __future__ import annotations

import math

import pytest
import torch

from tests.engines import common
from tests.ranks import run_ranks
from upscale import engines
from upscale.distributed.world import World
from upscale.engines import Fragment
from upscale.model import parametrization
from upscale.training import updates
from upscale.training.updates import UpdateRatios

KINDS = {
    "stage 1": {"engine__zero_stage": 1},
    "fsdp": {"engine__name": "fsdp"},
    "copies": {"engine__name": "fsdp", "engine__shard_ranks": 1},
}


def measure(world: World, kinds: dict[str, dict]) -> dict[str, dict]:
    """The ratios of a step, and the weights that this rank holds before and after it."""
    found = {}
    for label, kind in kinds.items():
        config = common.config(**kind)
        engine = engines.create(config, parametrization.build(config), world)
        mine = common.global_rows(0).tensor_split(world.size)[world.rank]
        ratios = UpdateRatios(config, engine)
        before = common.copies(engine, "")
        ratios.remember()
        common.train_step(engine, world, config, mine, 0)
        found[label] = {
            "ratios": ratios.ratios(world),
            "before": {"end": before},
            "after": {"end": common.copies(engine, "")},
        }
    return found


def test_ratios_are_those_of_whole_weights():
    config = common.config()
    names = [name for name, shape in parametrization.shapes(config).items() if len(shape) == 2]
    results = run_ranks(measure, 2, KINDS, timeout_seconds=300)
    for label in KINDS:
        before, after = (
            common.whole([rank[label][when] for rank in results], "weight") for when in ("before", "after")
        )
        one, two = (rank[label]["ratios"] for rank in results)
        assert one == two, label
        ratios = {name: ((after[name] - before[name]).norm() / before[name].norm()).item() for name in names}
        assert one["update_ratio_maximum"] == pytest.approx(max(ratios.values()), rel=1e-4), label
        assert one["update_ratio_maximum"] > 0
        for part, ratio in one["update_ratio_per_part"].items():
            own = [name for name in names if parametrization.part_of(name) == part]
            moved, held = (
                torch.cat([weights[name].flatten() for name in own])
                for weights in ({n: after[n] - before[n] for n in own}, before)
            )
            assert ratio == pytest.approx((moved.norm() / held.norm()).item(), rel=1e-4), (label, part)
        assert set(one["update_ratio_per_part"]) == {"embeddings", "attention", "ff", "head"}


def test_large_pieces_are_sampled(monkeypatch):
    """A tenth of each matrix: the same ratio where every number moved by the same share, and less memory."""
    monkeypatch.setattr(updates, "SAMPLE", 100)
    config = common.config()
    weights = {name: torch.randn(shape.numel()) for name, shape in parametrization.shapes(config).items()}

    class Engine:
        def fragments(self):
            for name, weight in weights.items():
                yield Fragment(name, 0, {"weight": weight})

    ratios = UpdateRatios(config, Engine())
    ratios.remember()
    assert max(len(sample) for sample in ratios.before) <= 100
    for weight in weights.values():
        weight.mul_(1.25)
    found = ratios.ratios(World.single())
    assert found["update_ratio_maximum"] == pytest.approx(0.25, rel=1e-5)
    assert all(math.isclose(ratio, 0.25, rel_tol=1e-5) for ratio in found["update_ratio_per_part"].values())
