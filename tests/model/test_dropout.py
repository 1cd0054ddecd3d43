"""Keyed dropout against the statistics of independent coins, and against being split over ranks."""

from __future__ import annotations

import pytest
import torch

from tests import tiny
from upscale.model import parametrization
from upscale.model.dropout import Dropout, block_keys, keep_mask
from upscale.randomness.streams import Purpose, Stream

SHAPE = torch.Size((64, 32, 128))


def row_keys(rows: int, step: int = 0) -> torch.Tensor:
    return Stream(1, torch.arange(rows), torch.full((rows,), step)).bits(Purpose.DROPOUT, 1)[:, 0]


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_the_share_and_the_scale(probability):
    """The share within five standard errors; the mean of what is left is that of the input."""
    output = Dropout(probability, 0)(torch.ones(SHAPE), row_keys(64))
    dropped = (output == 0).double().mean().item()
    assert dropped == pytest.approx(probability, abs=5 * (probability * (1 - probability) / SHAPE.numel()) ** 0.5)
    torch.testing.assert_close(output.unique(), torch.tensor([0, 1 / (1 - probability)]))


def test_rows_steps_blocks_and_sites_are_independent():
    """Two masks with p = 0.5 agree on half of their elements, within five standard errors."""
    keys = row_keys(64)
    masks = {
        "base": keep_mask(keys, SHAPE, 0.5),
        "row": keep_mask(keys.roll(1), SHAPE, 0.5),
        "step": keep_mask(row_keys(64, 1), SHAPE, 0.5),
        "block 0": keep_mask(block_keys(keys, 0), SHAPE, 0.5),
        "block 1": keep_mask(block_keys(keys, 1), SHAPE, 0.5),
        "element": keep_mask(keys, SHAPE, 0.5).roll(1, -1),
        "position": keep_mask(keys, SHAPE, 0.5).roll(1, 1),
    }
    names = list(masks)
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            agreement = (masks[one] == masks[other]).double().mean().item()
            assert agreement == pytest.approx(0.5, abs=5 * 0.5 / SHAPE.numel() ** 0.5), (one, other)
    sites = [Dropout(0.5, site)(torch.ones(SHAPE), keys) for site in (0, 1)]
    assert (sites[0] == sites[1]).double().mean().item() == pytest.approx(0.5, abs=0.005)


def test_a_rows_output_does_not_depend_on_the_rows_beside_it():
    model = parametrization.build(tiny.config(model__dropout=0.3))
    tokens, keys = torch.randint(0, 256, (6, 16)), row_keys(6)
    whole = model(tokens, 6, row_keys=keys)
    parts = torch.cat([model(tokens[:1], 6, row_keys=keys[:1]), model(tokens[1:], 6, row_keys=keys[1:])])
    torch.testing.assert_close(parts, whole)
    assert not torch.allclose(model(tokens, 6, row_keys=row_keys(6, 1)), whole)


def test_evaluation_drops_nothing():
    x = torch.randn(SHAPE)
    assert torch.equal(Dropout(0.5, 0).eval()(x, row_keys(64)), x)


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_masks_from_torchs_generator(probability):
    """The share and its independence of the place, within five standard errors; the gradient is the mask; the seed and
    nothing else decides."""
    dropout, shape = Dropout(probability, 0), torch.Size((63, 31, 127))  # not a multiple of the four that a word serves
    torch.manual_seed(5)
    x = torch.ones(shape, requires_grad=True)
    output = dropout(x)
    tolerance = 5 * (probability * (1 - probability) / shape.numel()) ** 0.5
    dropped = output == 0
    assert dropped.double().mean().item() == pytest.approx(probability, abs=tolerance)
    for shift in (1, 2, 3, 4, 64):
        both = (dropped.flatten() & dropped.flatten().roll(shift)).double().mean().item()
        assert both == pytest.approx(probability**2, abs=tolerance), shift
    torch.testing.assert_close(output.unique(), torch.tensor([0, 1 / (1 - probability)]), rtol=2**-15, atol=0)
    output.sum().backward()
    assert torch.equal(x.grad, output)
    torch.manual_seed(5)
    assert torch.equal(dropout(x), output)
    assert not torch.equal(dropout(x), output)
    assert torch.equal(dropout.eval()(x), x)
