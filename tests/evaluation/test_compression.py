"""The metric against a slow loop, against predictors whose rate is known, and across real ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.ranks import run_ranks
from tests.reference import evaluation_markov as reference
from upscale.distributed.world import World
from upscale.evaluation.compression import measure, target_positions
from upscale.evaluation.tasks import GENERATED

SINGLE = World.single()


def some_logits(tokens: torch.Tensor) -> torch.Tensor:
    """A fixed nonsense model that depends on every token of its input."""
    weights = torch.arange(1, tokens.shape[1] + 1, dtype=torch.float64)
    return torch.sin((tokens.double() * weights).sum(1, keepdim=True) + torch.arange(256)) * 3


def measured(predict, name_or_data, *, context=512, slices=10**9, batch_rows=4096):
    data = name_or_data
    if isinstance(data, str):
        data = np.frombuffer(GENERATED[data].generate(), np.uint8)
    positions = target_positions(len(data), context=context, slices=slices)
    return measure(predict, [data], [positions], context=context, world=SINGLE, batch_rows=batch_rows)[0]


def test_targets_are_distinct_places_with_a_whole_context():
    """Against the contract: without replacement, from context - 1 on, fixed by the seed, all if there are few."""
    positions = target_positions(1000, context=100, slices=500)
    assert len(set(positions.tolist())) == 500 and positions.min() >= 99 and positions.max() <= 999
    assert (positions == target_positions(1000, context=100, slices=500)).all()
    assert (positions != target_positions(1000, context=100, slices=500, seed=1)).any()
    assert target_positions(1000, context=100, slices=901).tolist() == list(range(99, 1000))
    assert target_positions(100, context=100, slices=5).tolist() == [99]
    with pytest.raises(ValueError, match="too few"):
        target_positions(99, context=100, slices=5)
    counts = np.zeros(20)
    for seed in range(2000):
        counts[target_positions(20, context=11, slices=3, seed=seed)] += 1
    assert counts[:10].sum() == 0 and counts[10:] == pytest.approx(600, abs=100)


def test_uniform_predictor_costs_exactly_eight_bits():
    """Against log2 256, with no rounding at all."""
    result = measured(lambda tokens: torch.zeros(len(tokens), 256), "toy", slices=100)
    assert (result.bits_per_character, result.standard_error, result.samples) == (8.0, 0.0, 100)


def test_equals_a_loop_over_slices():
    """Two strings measured together, in padded batches, against one slice at a time; logits or log-probabilities."""
    strings = [np.frombuffer(GENERATED[name].generate(500), np.uint8) for name in ("dyck", "aut")]
    positions = [
        target_positions(len(data), context=16, slices=count) for data, count in zip(strings, (37, 50), strict=True)
    ]

    def probabilities(before):
        return torch.softmax(some_logits(torch.tensor([before])), 1)[0].tolist()

    expected = [
        reference.bits_per_character(probabilities, data.tobytes(), places.tolist(), 16)
        for data, places in zip(strings, positions, strict=True)
    ]
    for predict in (some_logits, lambda tokens: torch.log_softmax(some_logits(tokens), 1)):
        results = measure(predict, strings, positions, context=16, world=SINGLE, batch_rows=10)
        assert [result.bits_per_character for result in results] == pytest.approx(expected, rel=1e-12)
        assert [result.samples for result in results] == [37, 50]
        assert results[0].groups == ()  # some of the 20 stretches would have a single slice
        stretches = [positions[1][np.arange(50) * 20 // 50 == group].tolist() for group in range(20)]
        by_stretch = [
            reference.bits_per_character(probabilities, strings[1].tobytes(), places, 16) for places in stretches
        ]
        assert results[1].groups == pytest.approx(by_stretch, rel=1e-12)


def test_standard_error_is_that_of_the_mean():
    """Against numpy's sample standard deviation over the single slices."""
    data = np.frombuffer(GENERATED["dyck"].generate(300), np.uint8)
    places = target_positions(len(data), context=8, slices=20)
    single = [
        measure(some_logits, [data], [places[i : i + 1]], context=8, world=SINGLE, batch_rows=1)[0] for i in range(20)
    ]
    bits = np.array([result.bits_per_character for result in single])
    result = measure(some_logits, [data], [places], context=8, world=SINGLE, batch_rows=7)[0]
    assert result.standard_error == pytest.approx(bits.std(ddof=1) / math.sqrt(20), rel=1e-9)
    assert math.isnan(single[0].standard_error)


def grammar_predictor(probabilities):
    """A predictor from a function of the unfinished string (after the last delimiter) to {character: probability}."""

    def predict(tokens: torch.Tensor) -> torch.Tensor:
        scores = torch.full((len(tokens), 256), -math.inf)
        for row, window in zip(scores, tokens.to(torch.uint8).numpy(), strict=True):
            for character, probability in probabilities(window.tobytes().rpartition(b"|")[2]).items():
                row[character] = math.log(probability)
        return scores

    return predict


def dyck_next(string: bytes) -> dict[int, float]:
    depth = string.count(b"(") - string.count(b")")
    if not string:
        return {ord("("): 1.0}
    if len(string) == 511:
        return {ord("("): 7 / 16, ord(")"): 0.5525, ord("|"): 0.01}  # the window hides where it began, and its depth
    return {ord("("): 7 / 16, ord(")"): 9 / 16} if depth > 0 else {ord("|"): 1.0}


def ndfa_next(string: bytes) -> dict[int, float]:
    if not string:
        return {ord("s"): 1.0}
    if string == b"s":
        return {ord("s"): 1 / 4, ord("a"): 1 / 4, ord("u"): 1 / 4, ord("k"): 1 / 4}
    if string.endswith(b"!"):
        return {ord("s"): 1 / 4, string[1]: 3 / 4}
    if string.endswith(b"s"):
        return {ord("|"): 1.0}
    word = next(word for word in (b"abc!", b"uvw!", b"klm!") if word[0] == string[1])
    return {word[word.index(string[-1]) + 1]: 1.0}


@pytest.mark.parametrize(("name", "following"), [("dyck", dyck_next), ("ndfa", ndfa_next)])
def test_knowing_the_grammar_reaches_the_optimum(name, following):
    """A predictor that knows grammar and state, on every position, against the task's closed-form rate."""
    result = measured(grammar_predictor(following), name)
    assert result.samples > 99_000
    assert result.bits_per_character == pytest.approx(
        GENERATED[name].optimal_bits_per_character, abs=4 * result.standard_error
    )
    assert result.standard_error < 0.003


def test_softmax_runs_over_every_column():
    """Against log2 of the vocabulary: nothing is restricted to the data's alphabet or to 256 tokens."""
    result = measured(lambda tokens: torch.zeros(len(tokens), 1024), "dyck", slices=10)
    assert result.bits_per_character == 10.0


def test_model_that_is_not_finite():
    """Against IEEE rules: NaN logits give NaN and a zero probability gives infinity, not an error in mid-training."""
    assert math.isnan(
        measured(lambda tokens: torch.full((len(tokens), 256), math.nan), "dyck", slices=5).bits_per_character
    )
    nothing = torch.full((256,), -math.inf)
    nothing[0] = 0.0
    assert measured(lambda tokens: nothing.expand(len(tokens), 256), "dyck", slices=5).bits_per_character == math.inf


def test_wrong_shape_is_refused():
    """Against the contract: one row of logits a slice."""
    for shape in ((511, 256), (3,), (8, 255), (8, 511, 256)):
        with pytest.raises(ValueError, match="predict returned"):
            measured(lambda tokens, shape=shape: torch.zeros(shape), "dyck", slices=5, batch_rows=8)


SHARED_CASES = (((101, 40, 7), 16), ((1,), 4))
"""Slices of each string, and batch_rows; in the second, all ranks but one have nothing of their own."""


def sharded(world: World) -> list[tuple]:
    """Measurements whose predict is a collective, as a sharded forward is, with the calls and the progress of each."""
    outcomes = []
    for counts, batch_rows in SHARED_CASES:
        names = ("toy", "bits", "ndfa")[: len(counts)]
        strings = [np.frombuffer(GENERATED[name].generate(2000), np.uint8) for name in names]
        positions = [
            target_positions(len(data), context=64, slices=count) for data, count in zip(strings, counts, strict=True)
        ]
        shapes, seen = [], []

        def predict(tokens, shapes=shapes):
            shapes.append(tuple(tokens.shape))
            assert world.all_reduce_sum(torch.ones(1, device=world.device)).item() == world.size
            return some_logits(tokens)

        results = measure(
            predict,
            strings,
            positions,
            context=64,
            world=world,
            batch_rows=batch_rows,
            labels=names,
            progress=lambda *given, seen=seen: seen.append(given),
        )
        outcomes.append((results, shapes, seen))
    return outcomes


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_share_the_work_and_agree(size):
    """Real gloo ranks against one process: equal to rounding, equally many calls of one shape, also for idle ranks."""
    alone = sharded(SINGLE)
    everyone = run_ranks(sharded, size, timeout_seconds=90)
    for case, (counts, batch_rows) in enumerate(SHARED_CASES):
        calls = math.ceil(math.ceil(sum(counts) / size) / batch_rows)
        for outcomes in everyone:
            results, shapes, seen = outcomes[case]
            assert repr(results) == repr(everyone[0][case][0])
            assert shapes == [(batch_rows, 63)] * calls
            assert [done[:2] for done in seen] == [(call + 1, calls) for call in range(calls)]
            assert seen[0][2] == "toy"
            for result, single in zip(results, alone[case][0], strict=True):
                assert result.samples == single.samples
                assert result.bits_per_character == pytest.approx(single.bits_per_character, rel=1e-13)
