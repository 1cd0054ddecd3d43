"""Sums of intervals against counting points, and what the profiler sees of collectives whose number is known."""

from __future__ import annotations

import random

import torch

from tests.ranks import run_ranks
from upscale.bench.communication import length, measure, overlap, union
from upscale.distributed.world import World


def test_unions_and_overlaps_against_points():
    """Random intervals between whole numbers, against sets of the unit steps they cover."""
    chance = random.Random(1)

    def intervals() -> list[tuple[int, int]]:
        starts = [chance.randrange(60) for _ in range(chance.randrange(12))]
        return [(start, start + chance.randrange(1, 9)) for start in starts]

    def steps(found) -> set[int]:
        return {step for begin, end in found for step in range(begin, end)}

    for _ in range(200):
        one, other = intervals(), intervals()
        assert steps(union(one)) == steps(one) and length(union(one)) == len(steps(one))
        both = overlap(union(one), union(other))
        assert steps(both) == steps(one) & steps(other) and length(both) == len(steps(both))


def nothing_and_something(world: World) -> list[dict]:
    def exchange() -> None:
        for _ in range(20):
            world.all_reduce_sum(torch.ones(100_000))

    return [measure(lambda: torch.ones(10) + 1, world.device), measure(exchange, world.device)]


def test_collectives_are_seen_and_nothing_else():
    for nothing, something in run_ranks(nothing_and_something, 2):
        assert nothing["under_way_seconds"] == 0 and something["exposed_seconds"] is None
        assert 0 < something["under_way_seconds"] <= something["profiled_step_seconds"]
