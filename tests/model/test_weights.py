"""A parameter's numbers: any part is the whole's, they are normal, and no two parameters or seeds share them."""

from __future__ import annotations

import math

import pytest
import torch

from tests import tiny
from upscale.model import parametrization, weights

SIZE = 3 * weights.PAGE + 1001


def drawn(seed: int = 5, name: str = "blocks.0.head.weight", size: int = SIZE, offset: int = 0, count: int = SIZE):
    out = torch.full((count,), math.nan)
    weights.draw_normal(out, seed, name, size, offset)
    return out


def test_any_part_has_the_very_bits_of_the_whole():
    """At both ends of a page, within one, over several, and of a parameter smaller than a page."""
    page, whole = weights.PAGE, drawn()
    assert whole.isfinite().all()
    parts = ((0, 1), (page - 1, 1), (page, page), (page - 3, page + 6), (17, 2 * page), (SIZE - 1, 1), (3 * page, 1001))
    for offset, count in parts:
        assert torch.equal(drawn(offset=offset, count=count), whole[offset : offset + count]), (offset, count)
    small = drawn(size=999, count=999)
    assert torch.equal(small, whole[:999])
    assert torch.equal(drawn(size=999, offset=501, count=498), small[501:])


def test_passes_of_several_pages_are_the_same_numbers(monkeypatch):
    """As on a GPU, where a page a pass would be launches without end."""
    expected = drawn(offset=10, count=SIZE - 20)
    monkeypatch.setattr(weights, "pages_per_pass", lambda device: 3)
    assert torch.equal(drawn(offset=10, count=SIZE - 20), expected)


def test_numbers_are_standard_normal():
    """The largest distance between their distribution and the normal one, and moments, at four standard errors."""
    numbers = drawn().double().sort().values
    expected = (1 + torch.erf(numbers / math.sqrt(2))) / 2
    assert (expected - torch.arange(SIZE) / SIZE).abs().max() < 2 / math.sqrt(SIZE)
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert numbers.pow(power).mean().item() == pytest.approx(mean, abs=4 * math.sqrt(variance / SIZE)), power


def test_seeds_names_and_neighbours_are_uncorrelated():
    whole = drawn()
    others = (drawn(seed=6), drawn(name="blocks.1.head.weight"), whole.roll(1), whole.roll(weights.PAGE))
    for other in others:
        assert abs((whole * other).mean().item()) < 4 / math.sqrt(SIZE)


def test_a_models_weights_have_the_mean_and_deviation_of_their_role():
    """Every parameter against the table's row, at five standard errors; constants exactly."""
    config = tiny.config(model__width=64, mup__base_width=32)
    for name, parameter in parametrization.build(config).named_parameters():
        rule = parametrization.rule(parametrization.role_of(name), parameter.shape, config.model, config.mup)
        error = 5 * rule.standard_deviation / math.sqrt(parameter.numel())
        assert abs(parameter.mean().item() - rule.mean) <= error, name
        spread = (parameter - rule.mean).square().mean().sqrt().item()
        assert spread == pytest.approx(rule.standard_deviation, abs=error), name
