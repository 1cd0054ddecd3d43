"""Schedules against the paper's numbers, computed by hand."""

from __future__ import annotations

import pytest

from upscale import schedule
from upscale.config import files as config_files
from upscale.model import parametrization

CONFIG = config_files.load(None).resolved()


@pytest.mark.parametrize(
    ("instances", "factor"),
    [(0, 1 / 1.6e6), (800_000, 0.5), (1_600_000, 1.0), (11_600_000, 0.5), (21_600_000, 0.25), (6_600_000, 2**-0.5)],
)
def test_learning_rate_warms_up_then_halves(instances, factor):
    assert schedule.learning_rate_factor(instances, CONFIG.schedule) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("instances", "rows"), [(0, 64), (499_999, 64), (750_000, 320), (1_000_000, 512), (10**7, 512)]
)
def test_batch_grows_and_is_a_multiple_of_the_lanes(instances, rows):
    """16 rounds up to one row a lane; halfway from 16 to 500 is 258, which 64 lanes round up to 320."""
    assert schedule.batch_size(instances, CONFIG.schedule, 64) == rows
    assert schedule.full_batch_size(CONFIG.schedule, 64) == 512


def test_batch_of_one_lane_is_the_schedules_own():
    assert [schedule.batch_size(i, CONFIG.schedule, 1) for i in (0, 750_000, 2_000_000)] == [16, 258, 500]


@pytest.mark.parametrize("steps", [None, 1, 700, 10_000])
@pytest.mark.parametrize("instances", [1, 64, 499_999, 800_000, 1_300_001])
def test_a_run_ends_where_a_walk_over_its_schedule_does(instances, steps):
    """The paper's batches, others that grow sooner, and equal ones."""
    sooner, equal = "{start: 100, end: 128, from: 0, to: 1e5}", "{start: 128, end: 128, from: 0, to: 0}"
    for batch in ([], [f"schedule.batch={sooner}"], [f"schedule.batch={equal}"]):
        chosen = config_files.load(None, [f"schedule.instances={instances}", *batch]).schedule
        seen = taken = 0
        while seen < instances and taken != steps:
            seen, taken = seen + schedule.batch_size(seen, chosen, 64), taken + 1
        assert schedule.planned_end(chosen, 64, steps) == (taken, seen)


@pytest.mark.parametrize(
    ("instances", "blocks"), [(0, 8), (9_999, 8), (10_000, 16), (20_000, 24), (30_000, 32), (40_000, 34)]
)
def test_groups_of_eight_wake_every_ten_thousand(instances, blocks):
    assert schedule.active_blocks(instances, CONFIG.schedule, CONFIG.model) == blocks


def test_without_waking_every_block_is_active_from_the_start():
    config = config_files.load(
        None, ["schedule.wake_every=0", "schedule.warmup=0", "schedule.halve_every=0"]
    ).resolved()
    assert schedule.active_blocks(0, config.schedule, config.model) == 34
    assert schedule.learning_rate_factor(10**9, config.schedule) == 1.0


@pytest.mark.parametrize(
    ("decay", "factors"),
    [
        ("{shape: linear, to: 0.0}", {1: 0.01, 100: 1.0, 550: 0.5, 775: 0.25, 1000: 0.0, 2000: 0.0}),
        # a third of the way down the cosine: (1 + cos(60 degrees)) / 2 = 0.75 of what is above the end
        ("{shape: cosine, to: 0.2}", {100: 1.0, 400: 0.2 + 0.8 * 0.75, 550: 0.6, 700: 0.4, 1000: 0.2}),
        ("{shape: linear, to: 0.5, over: 100}", {50: 0.5, 100: 1.0, 900: 1.0, 950: 0.75, 1000: 0.5}),
    ],
)
def test_a_schedule_ends(decay, factors):
    """After a warm-up of 100 instances, at 1000; beside a rate that halves, both factors count."""
    words = ["schedule.warmup=100", "schedule.instances=1000", f"schedule.decay={decay}"]
    ends = config_files.load(None, [*words, "schedule.halve_every=0"]).schedule
    halves = config_files.load(None, [*words, "schedule.halve_every=450"]).schedule
    for instances, factor in factors.items():
        assert schedule.learning_rate_factor(instances, ends) == pytest.approx(factor), instances
        halved = 0.5 ** (max(0, instances - 100) / 450)
        assert schedule.learning_rate_factor(instances, halves) == pytest.approx(factor * halved), instances


def test_wake_groups_of_blocks():
    groups = [parametrization.wake_group(block, CONFIG.model) for block in range(34)]
    assert groups == [0] * 8 + [1] * 8 + [2] * 8 + [3] * 8 + [4] * 2


@pytest.mark.parametrize(
    ("before", "after", "every", "expected"),
    [(0, 10, 10, True), (9, 10, 10, True), (10, 19, 10, False), (0, 99, 0, False)],
)
def test_crossed(before, after, every, expected):
    assert schedule.crossed(before, after, every) is expected
