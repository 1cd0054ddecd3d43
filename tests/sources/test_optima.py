"""What a model that knows a source still pays: against walks over all rows, published figures and generated rows."""

import math

import numpy
import pytest
from pydantic import TypeAdapter

from tests.reference import formal_sources as reference
from tests.reference.list_sources import noisy_set_law
from upscale.config import ModelConfig
from upscale.sources import AnySource
from upscale.sources.nesting import word_shares


def settings(**keys):
    return TypeAdapter(AnySource).validate_python(keys)


def balanced(k, p, length):
    return reference.dyck_law(k, p, length=length)


@pytest.mark.parametrize(
    ("keys", "law", "length"),
    [
        (dict(kind="uniform"), lambda prefix: dict.fromkeys(range(5), 0.2), 3),
        (dict(kind="pointwise"), reference.dirichlet_law(5), 5),
        (dict(kind="dyck", brackets=2, depth=3), reference.dyck_law(2, 0.5, depth=3), 9),
        (
            dict(kind="dyck", brackets=1, depth=4, word_tokens=5, open_probability=0.7),
            reference.dyck_law(1, 0.7, depth=4, word_tokens=5),
            14,
        ),
        (dict(kind="dyck", brackets=2, variant="balanced"), balanced(2, 0.5, 8), 8),
        (dict(kind="dyck", brackets=2, variant="balanced", open_probability=0.8), balanced(2, 0.8, 9), 9),
        (dict(kind="shuffle_dyck", brackets=2, depth=3), reference.shuffle_law(2, 0.5, 3), 8),
        (dict(kind="shuffle_dyck", brackets=3, depth=9, open_probability=0.6), reference.shuffle_law(3, 0.6, 9), 6),
        (dict(kind="noisy_set", values=3, total=8), noisy_set_law(3, 8), 9),
        (dict(kind="noisy_set", values=2, total=5), noisy_set_law(2, 5), 6),
        (
            dict(kind="nesting", structure="nest", words=2, paired=True),
            reference.nest_law(word_shares(2, True).tolist(), 0.49),
            9,
        ),
    ],
)
def test_bits_of_each_token_are_those_of_all_rows(keys, law, length):
    """Against the entropy of the next token over all rows, from the law that the definition gives it."""
    assert numpy.allclose(settings(**keys).bits(length, 5), reference.expected_bits(law, length), atol=1e-9)


@pytest.mark.parametrize(
    ("keys", "context", "bits", "error"),
    [
        (dict(kind="dyck", variant="balanced"), 2047, 3.9637, 1e-4),
        (dict(kind="dyck", variant="balanced", open_probability=0.49), 2047, 3.9592, 1e-4),
        (dict(kind="dyck", variant="balanced"), 127, 3.8424, 1e-4),
        (dict(kind="dyck", variant="balanced", brackets=16), 127, 2.8502, 1e-4),
        (dict(kind="shuffle_dyck"), 2047, 5.23, 0.01),
        (dict(kind="shuffle_dyck", depth=8), 2047, 4.797, 0.003),
        (dict(kind="shuffle_dyck", depth=8, open_probability=0.51), 2047, 4.834, 0.003),
        (dict(kind="shuffle_dyck", brackets=16), 2047, 4.057, 0.003),
        (dict(kind="minimalist"), 20_000, 4.585 / 39, 1e-4),
        (dict(kind="nesting", structure="repetition", words=500), 511, 3.81, 0.01),
        (dict(kind="nesting", structure="repetition", words=500, zipf=False), 511, 4.55, 0.01),
        (dict(kind="nesting", structure="nest", words=250, paired=True), 511, 4.452, 0.01),
        (dict(kind="noisy_set", values=998, total=2047), 2047, 6.40, 0.01),
        (dict(kind="rewriting", task="deduct"), 512, 0.0, 0.0),
        (dict(kind="lists", task="set"), 128, 0.0, 0.0),
        (dict(kind="lists", task="sort", loss="all"), 128, 63 * math.log2(99) / 128, 1e-9),
        (dict(kind="cells"), 8 * 65 - 1, 63 / (8 * 65 - 1), 1e-9),
    ],
)
def test_optima_of_published_settings(keys, context, bits, error):
    """Against figures derived apart from this code: dynamic programs, closed forms and simulations."""
    model = ModelConfig(context=context, vocabulary=1000)
    assert settings(**keys).optimum(model, 1) == pytest.approx(bits, abs=error)


@pytest.mark.parametrize(
    "keys",
    [
        dict(kind="lstm"),
        dict(kind="dyck", permute=True),
        dict(kind="shuffle_dyck", depth=25),
        dict(kind="cells", rule="random"),
        dict(kind="rewriting"),
        dict(kind="cells", width=32),
        dict(kind="nesting", structure="nest"),
        dict(kind="pointwise", variant="code"),
    ],
)
def test_what_is_not_known_has_no_optimum(keys):
    """Hidden states, names drawn for each row, and structure that a row does not show."""
    assert settings(**keys).optimum(ModelConfig(), 1) is None
