"""The transformer source, against torch.nn.TransformerEncoderLayer and against itself."""

import pytest
import torch

from tests.reference.transformer import transformer_source
from tests.sources.common import assert_rows_do_not_depend_on_the_call, given
from upscale.sources.transformer import TransformerSource


@pytest.mark.parametrize(
    "arguments",
    [
        dict(vocabulary=256, hidden=40),
        dict(vocabulary=11, hidden=12, layers=2, heads=3, seed_tokens=2, temperature=0.5, multiplier=(2.0, 4.0)),
        dict(vocabulary=300, hidden=8, layers=3, heads=1, temperature=0.0, multiplier=(1.0, 8.0)),
    ],
    ids=["default", "warm", "greedy"],
)
def test_rows_are_those_of_torch_nn_token_for_token(arguments):
    """Against torch.nn's layer in float64, every token from a whole forward pass over one row."""
    stream, conditions, seeds = given(2, 2, 45, arguments["vocabulary"], arguments.get("seed_tokens", 8))
    rows = TransformerSource(dtype=torch.float64, **arguments).write(stream, conditions, seeds)
    assert rows.dtype == conditions.dtype
    assert rows.tolist() == transformer_source(**arguments).write(stream, conditions, seeds).tolist()


@pytest.mark.parametrize("hidden", [40, pytest.param(52, marks=pytest.mark.slow)])
def test_a_lanes_rows_do_not_depend_on_who_shares_the_call(hidden):
    source = TransformerSource(vocabulary=256, hidden=hidden, layers=2, multiplier=(4.0, 4.0))
    assert_rows_do_not_depend_on_the_call(source, rows=7, length=90)


def test_calls_of_a_fixed_number_of_lanes_give_the_same_rows():
    """Against one call for all lanes: the form that keeps a GPU to one shape."""
    stream, conditions, seeds = given(3, 3, 40, seed_tokens=8)
    together = TransformerSource(vocabulary=256, hidden=20).write(stream, conditions, seeds)
    parted = TransformerSource(vocabulary=256, hidden=20, lanes_per_call=2).write(stream, conditions, seeds)
    assert torch.equal(parted, together)


def test_rows_begin_with_their_seeds_and_follow_their_conditions():
    """Against the seeds given; another condition gives another row from where it differs."""
    stream, conditions, seeds = given(2, 3, 40, seed_tokens=8)
    source = TransformerSource(vocabulary=256, hidden=20)
    rows = source.write(stream, conditions, seeds)
    assert torch.equal(rows[..., :8], seeds)
    changed = conditions.clone()
    changed[..., 20:] = 255 - changed[..., 20:]
    others = source.write(stream, changed, seeds)
    assert torch.equal(others[..., :21], rows[..., :21]) and not torch.equal(others, rows)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(heads=3), "heads is 3; allowed: a divisor of hidden .20."),
        (dict(layers=0), "layers is 0; allowed: 1 or more"),
        (dict(hidden=1), "hidden is 1; allowed: 2 or more"),
    ],
)
def test_mistakes_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        TransformerSource(**{"vocabulary": 256, "hidden": 20, **arguments})
