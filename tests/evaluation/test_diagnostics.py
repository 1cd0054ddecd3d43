"""Diagnostics against the slow reference, and on models whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.reference import diagnostics as reference
from upscale.evaluation import diagnostics
from upscale.evaluation.dataset import Dataset

CPU = torch.device("cpu")
CONTEXT = 32
WEIGHTS = torch.from_numpy(np.random.default_rng(3).normal(0, 2, (256, 256)))


def bigram(tokens: torch.Tensor) -> torch.Tensor:
    """Logits that depend on the last token and how many there are."""
    return WEIGHTS[tokens] * (1 + torch.arange(tokens.shape[1]) / 40)[None, :, None]


def looks_up(tokens: torch.Tensor) -> torch.Tensor:
    """What followed the last place where the last two tokens stood, for sure; else every byte alike."""
    logits = torch.zeros(*tokens.shape, 256)
    for row, given in enumerate(tokens.tolist()):
        for end in range(2, len(given) + 1):
            for place in range(end - 3, -1, -1):
                if given[place : place + 2] == given[end - 2 : end]:
                    logits[row, end - 1, given[place + 2]] = 40.0
                    break
    return logits


def alone(prefix: bytes) -> list[float]:
    return bigram(torch.tensor([list(prefix)]))[0, -1].tolist()


def text(characters: int) -> Dataset:
    data = np.random.default_rng(5).choice([97, 98, 99, 100], characters, p=[0.6, 0.2, 0.1, 0.1]).astype(np.uint8)
    return Dataset("text", "text", data, "excerpt")


def windows(dataset: Dataset) -> list[bytes]:
    ends = diagnostics.target_positions(len(dataset.data), context=CONTEXT + 1, slices=diagnostics.ROWS)
    return [dataset.data[end - CONTEXT : end + 1].tobytes() for end in ends]


def test_induction_copying_positions_and_calibration_are_the_references(monkeypatch):
    monkeypatch.setattr(diagnostics, "ROWS", 6)
    for distance in (4, 16):
        rows = diagnostics.induction_rows(distance, CONTEXT, 6, np.random.default_rng(0))
        assert rows.shape == (6, CONTEXT + 1) and (rows[:, distance:] == rows[:, :-distance]).all()
        found = diagnostics.score(bigram, rows, 4, CPU)
        expected = reference.repeated(alone, [row.tobytes() for row in rows], distance)
        assert (found.bits[:, distance:].mean(), found.right[:, distance:].mean()) == pytest.approx(expected)
    dataset = text(400)
    found = diagnostics.of_text(bigram, dataset, context=CONTEXT, batch_rows=4, device=CPU)
    by_position = dict(zip(found["positions"], found["bits_by_position"], strict=True))
    assert by_position == pytest.approx(reference.by_position(alone, windows(dataset)))
    assert found["calibration_error"] == pytest.approx(reference.calibration_error(alone, windows(dataset)))
    assert sum(found["calibration_counts"]) == 6 * CONTEXT


def test_a_model_that_looks_up_repeats_and_finds_needles(monkeypatch):
    monkeypatch.setattr(diagnostics, "ROWS", 8)
    found = diagnostics.probes(looks_up, context=CONTEXT, batch_rows=8, device=CPU)
    assert found["distances"] == [4, 8, 16]
    # it needs two bytes: the first repeated byte that counts is a guess where its two are not yet a repetition
    for distance, bits, copied in zip(
        *(found[key] for key in ("distances", "induction_bits", "copy_accuracy")), strict=True
    ):
        guesses = 1 / (CONTEXT - distance)
        assert bits == pytest.approx(8 * guesses, abs=0.8) and copied >= 1 - 2 * guesses
    assert found["needle_recall"] == [1.0] * 4


def test_needles_lie_where_their_distance_says():
    rows, far = diagnostics.needle_rows(CONTEXT, 400, np.random.default_rng(0))
    for row, distance in zip(rows.tolist(), far, strict=True):
        assert row[-1] == row[-1 - distance] and row[-5:-1] == row[-5 - distance : -1 - distance]
        assert sum(65 <= one <= 90 for one in row) == 8
    assert set(far) == set(range(5, CONTEXT - 3))


def test_guessing_is_eight_bits_and_perfectly_calibrated():
    def guess(tokens: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*tokens.shape, 256)

    found = diagnostics.diagnose(guess, [text(2000), text(20)], context=CONTEXT, batch_rows=32, device=CPU)
    assert found["induction_bits"] == pytest.approx([8.0] * 3) and max(found["copy_accuracy"]) < 0.05
    (one,) = found["texts"]
    assert one["bits_by_position"] == pytest.approx([8.0] * 6) and one["positions"] == [1, 2, 4, 8, 16, 32]
    assert one["calibration_error"] == pytest.approx(1 / 256)  # it never names what comes: its best guess is byte 0
    assert math.isclose(sum(one["calibration_counts"]), diagnostics.ROWS * CONTEXT)
