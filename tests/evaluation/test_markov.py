"""The in-context Markov baseline against a model of dictionaries and against the published table."""

from __future__ import annotations

import numpy as np
import pytest

from tests.reference import evaluation_markov as reference
from upscale.evaluation.compression import target_positions
from upscale.evaluation.markov import LAMBDAS, PUBLISHED_INFLATION, in_context
from upscale.evaluation.tasks import GENERATED, TEXTS

# MARKOV_CTX of the public code for orders 0 to 5: one string of 100 000 characters, 100 000 windows each.
PUBLISHED = {
    "champ": (3.3676, 2.4247, 2.6952, 3.3094, 3.9252, 4.3293),
    "dyck": (1.3888, 1.1604, 1.1765, 1.0077, 1.0747, 1.1769),
    "ndfa": (3.5141, 0.7293, 0.3716, 0.3918, 0.4352, 0.5322),
    "aut": (1.3315, 1.2994, 1.1592, 1.1775, 1.1911, 1.2878),
    "toy": (4.2825, 2.6090, 1.9711, 2.4323, 2.8710, 3.3567),
    "toy2": (2.9741, 1.8884, 1.6806, 2.1302, 2.8098, 3.3454),
    "bits": (1.1875, 1.1961, 1.2226, 1.2693, 1.3434, 1.4328),
    "bitsflip": (1.0065, 1.0092, 1.0180, 1.0251, 1.0579, 1.0995),
    "bitsrep": (1.0057, 1.0127, 1.0215, 0.6922, 0.6957, 0.7379),
}
PUBLISHED_CODE = (5.2035, 4.4917, 4.4966, 4.9268, 5.3235, 5.5718)
# The corrected form, best order only, measured independently of this package on 4000 windows.
CORRECTED = {
    "champ": 2.399, "champ_decimal": 2.007, "dyck": 0.958, "ndfa": 0.313, "aut": 1.072, "toy": 1.638, "toy2": 1.577,
    "bits": 1.18, "bitsflip": 0.995,
}  # fmt: skip


def baseline(name: str, slices: int, seed: int):
    data = np.frombuffer(GENERATED[name].generate(seed=seed), np.uint8)
    positions = target_positions(len(data), context=512, slices=slices, seed=seed)
    return in_context(data, positions, context=512)


@pytest.mark.parametrize("context", [2, 4, 7, 8, 33])
@pytest.mark.parametrize("symbols", [2, 5, 40])
def test_equals_counting_with_dictionaries(context, symbols):
    """Both forms, every order, against one dictionary model per window, to rounding."""
    data = np.random.default_rng(symbols).integers(symbols, size=300).astype(np.uint8) + 60
    data[100:200] = np.resize(data[:7], 100)
    positions = target_positions(len(data), context=context, slices=60)
    result = in_context(data, positions, context=context)
    orders = min(5, context - 2) + 1
    for form, published in ((result.corrected, False), (result.published, True)):
        table = reference.markov_table(
            data.tobytes(), positions.tolist(), context, orders, LAMBDAS, published=published
        )
        factor = PUBLISHED_INFLATION if published else 1
        assert form.bits_by_order == pytest.approx([factor * min(row) for row in table], rel=1e-12)
        assert form.bits_per_character == form.bits_by_order[form.order] == min(form.bits_by_order)
        chosen = table[form.order][LAMBDAS.index(form.smoothing)]
        assert chosen == pytest.approx(min(table[form.order]), rel=1e-12)


def test_only_the_corrected_form_is_a_probability():
    """Against the axiom: over all targets the corrected p sums to one, the published one to less (sources E3.1)."""
    window = b"abracadabr"
    symbols = sorted(set(window))
    for order in range(1, 4):
        for published, total in ((False, 1.0), (True, None)):
            probabilities = [
                2 ** -reference.code_length(window + bytes([symbol]), order, 0.1, len(symbols), published=published)
                for symbol in symbols
            ]
            assert sum(probabilities) < 0.8 if total is None else sum(probabilities) == pytest.approx(1)


def test_corrected_form_of_unseen_contexts_is_uniform():
    """Against sources E3.1: a context never seen costs log2 V in the corrected form, -log2(l / (1 + l V)) published."""
    data = np.arange(256, dtype=np.uint8)
    result = in_context(data, np.array([255]), context=256)
    assert result.corrected.bits_by_order[1:] == pytest.approx([8.0] * 5)
    assert result.published.bits_by_order[1:] == pytest.approx([np.log2(257) * PUBLISHED_INFLATION] * 5)


def test_refuses_targets_without_context():
    """Against the contract: every target needs its whole window."""
    data = np.zeros(20, np.uint8)
    for positions, context in ((np.array([6]), 8), (np.array([], np.int64), 8), (np.array([5]), 1)):
        with pytest.raises(ValueError, match="characters before it"):
            in_context(data, positions, context=context)


@pytest.mark.parametrize("name", ["dyck", "ndfa", "aut"])
def test_reproduces_the_published_table_roughly(name):
    """Every order against the published table on 4000 windows, within 0.05 bits or 2 %: tells the forms apart."""
    result = baseline(name, 4000, seed=1)
    assert result.published.bits_by_order == pytest.approx(PUBLISHED[name], abs=0.05, rel=0.02)
    assert result.published.order == int(np.argmin(PUBLISHED[name]))
    assert result.corrected.bits_per_character == pytest.approx(CORRECTED[name], abs=0.05)
    assert result.corrected.bits_by_order != pytest.approx(PUBLISHED[name], abs=0.05, rel=0.02)


def test_reproduces_the_published_code_baseline():
    """Against the published baseline of code, which reads the first 170 000 characters of D3 (sources E3.3).

    Orders 1 to 5 within 0.035 bits. Order 0 is left out: ours is 5.27, published 5.204, so D3's version may differ.
    """
    data = TEXTS["code"].load().data[:170_000]
    result = in_context(data, target_positions(len(data), context=512, slices=40_000), context=512)
    assert result.published.bits_by_order[1:] == pytest.approx(PUBLISHED_CODE[1:], abs=0.035)
    assert result.published.order == 1


@pytest.mark.slow
def test_reproduces_the_published_table():
    """Every task and order, mean of five strings of 10 000 windows, against sources E2.

    The published values are one string each, whose own standard deviation reaches 0.03 bits (champ, toy, toy2): 2 % and
    0.02 bits are allowed, and 0.05 for the corrected form, whose reference is 4000 windows of one string.
    """
    for name in GENERATED:
        results = [baseline(name, 10_000, seed) for seed in range(5)]
        if name in PUBLISHED:
            means = np.mean([result.published.bits_by_order for result in results], axis=0)
            assert means == pytest.approx(np.array(PUBLISHED[name]), rel=0.02, abs=0.02), name
            assert int(means.argmin()) == int(np.argmin(PUBLISHED[name])), name
        if name in CORRECTED:
            best = np.mean([result.corrected.bits_by_order for result in results], axis=0).min()
            assert best == pytest.approx(CORRECTED[name], abs=0.05), name
