"""The arithmetic of a study against cases worked out by hand."""

from __future__ import annotations

import math

import pytest

from upscale.evaluation.record import EvaluationRecord
from upscale.study.results import Spread, outcome


def rows(*bits: float, every: int = 100, error: float = 0.03) -> list[EvaluationRecord]:
    """Evaluations at 0, 100, 200, ... instances."""
    return [
        EvaluationRecord(step=place, instances=place * every, task="wp", bits_per_character=value, standard_error=error)
        for place, value in enumerate(bits)
    ]


def test_tokens_to_reach_lie_on_the_line_between_two_evaluations():
    """Scratch falls 8, 6, 5, 4 in 300 rows of 10 tokens. The arm falls 8, 5, 3: it passes 4 half way, at 150."""
    found = outcome(rows(8, 5, 3), rows(8, 6, 5, 4), context=10, tokens_before=500)
    assert (found.reached, found.baseline_reached) == (1500, 3000)
    assert found.speed_up == pytest.approx(2.0)
    assert found.speed_up_in_all == pytest.approx(3000 / 2000)
    assert (found.tokens, found.gain, found.gain_of_bits) == (2000, 1.0, 0.25)
    assert found.gain_of_perplexity == pytest.approx(0.5)  # one bit less halves it
    assert found.margin == pytest.approx(2 * math.hypot(0.03, 0.03))


def test_an_arm_that_never_gets_there():
    found = outcome(rows(8, 6, 5), rows(8, 5, 4), context=10, tokens_before=0)
    assert math.isnan(found.reached) and math.isnan(found.speed_up) and math.isnan(found.speed_up_in_all)
    assert (found.gain, found.gain_of_bits, found.gain_of_perplexity) == (-1.0, -0.25, -1.0)


def test_a_baseline_that_rises_again_is_credited_with_its_first_time():
    """Scratch ends at 5, where it was after 150 rows already; the arm is there after 100."""
    found = outcome(rows(8, 5, 4), rows(8, 6, 4, 5), context=1, tokens_before=0)
    assert (found.baseline_reached, found.reached, found.speed_up) == (150, 100, 1.5)


def test_an_arm_that_begins_below_has_no_finite_speed_up():
    found = outcome(rows(3, 2), rows(8, 4), context=1, tokens_before=100)
    assert found.reached == 0 and found.speed_up == math.inf
    assert found.speed_up_in_all == pytest.approx(1.0)


def test_the_spread_counts_seeds_that_never_got_there():
    assert Spread.of([1.0, 2.0, 1.5]).text(".2f") == "1.50 (1.00 to 2.00)"
    assert Spread.of([1.0, math.nan, 2.0]).text(".1f") == "1.5 (1.0 to 2.0), 2 of 3 seeds"
    assert Spread.of([math.nan]).text(".1f") == "never"
    assert Spread.of([2.0]).text("+.1f") == "+2.0"
    assert Spread.of([]).text(".1f") == "–"
