"""What a model has learnt, beside how many bits it takes: repetition, retrieval, use of context, honest probabilities.

*Induction*: rows of random bytes whose first P are repeated to the end of the row. The induction score at distance P is
the mean of -log2 p of the repeated bytes from the second one on (that the repetition begins cannot be known before): 8
for guessing, 0 for a model that looks up what followed P bytes ago. *Copying* is the share of these bytes that are the
model's most likely ones.

*Needle in a haystack*: rows of random lower-case letters with, somewhere, a key of KEY random capitals and a random
lower-case letter, its value; the row ends with the key once more. Recall is the share of rows whose value is then the
most likely byte (1 / 26 for guessing a letter), by the distance of the two values, in quarters of the row.

*Bits by position*: mean -log2 p over windows of a text, by the number of characters before the target: 1, 2 to 3, 4 to
7, and so on. They fall as far as the model uses context.

*Calibration*: of all targets of these windows, by the probability of the most likely byte in ten equal bins: how many,
their mean probability, and the share that was right. The calibration error is the mean over targets of the distance
between the two (expected calibration error, Guo et al. 2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from upscale.evaluation.compression import target_positions
from upscale.evaluation.dataset import Dataset

ROWS = 64
"""Rows of each probe, and windows of each text."""
KEY, BINS, QUARTERS = 4, 10, 4
LETTERS, CAPITALS = np.arange(97, 123), np.arange(65, 91)

Logits = Callable[[torch.Tensor], torch.Tensor]
"""(rows, positions) int64 tokens -> (rows, positions, vocabulary >= 256) logits of each next token."""


@dataclass(frozen=True)
class Scores:
    """Of each target of some rows, (rows, positions) each: the token after every position."""

    bits: np.ndarray
    """-log2 of the probability it was given."""
    confidence: np.ndarray
    """The largest probability of any token there."""
    right: np.ndarray
    """Whether it had that largest probability."""


def score(logits: Logits, rows: np.ndarray, batch_rows: int, device: torch.device) -> Scores:
    """Scores of (rows, length) uint8 rows, length - 1 targets each."""
    parts = []
    for begin in range(0, len(rows), batch_rows):
        tokens = torch.from_numpy(rows[begin : begin + batch_rows].astype(np.int64)).to(device)
        with torch.no_grad():
            logs = torch.log_softmax(logits(tokens[:, :-1]).double(), dim=-1)
        targets = tokens[:, 1:]
        highest, best = logs.max(dim=-1)
        given = logs.gather(-1, targets[..., None]).squeeze(-1)
        parts.append((given / -math.log(2), highest.exp(), best == targets))
    return Scores(*(torch.cat(each).cpu().numpy() for each in zip(*parts, strict=True)))


def distances(context: int) -> list[int]:
    """The powers of two, from 4, that repeat within a row of context + 1 bytes."""
    return [2**power for power in range(2, 31) if 2 ** (power + 1) <= context + 1]


def induction_rows(distance: int, context: int, rows: int, random: np.random.Generator) -> np.ndarray:
    """(rows, context + 1) uint8: random bytes that repeat after `distance`."""
    first = random.integers(256, size=(rows, distance)).astype(np.uint8)
    return np.tile(first, (1, math.ceil((context + 1) / distance)))[:, : context + 1]


def needle_rows(context: int, rows: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(rows, context + 1) uint8 that end with a key and its value, and how far back the two stood first, (rows,)."""
    length = context + 1
    found = random.choice(LETTERS, (rows, length))
    keys, values = random.choice(CAPITALS, (rows, KEY)), random.choice(LETTERS, rows)
    places = random.integers(0, length - 2 * (KEY + 1) + 1, rows)
    for row, (place, key, value) in enumerate(zip(places, keys, values, strict=True)):
        found[row, place : place + KEY + 1] = found[row, -KEY - 1 :] = [*key, value]
    return found.astype(np.uint8), length - 1 - (places + KEY)


def probes(logits: Logits, *, context: int, batch_rows: int, device: torch.device, seed: int = 0) -> dict[str, Any]:
    """Induction, copying and needles of a model with this context: lists by distance; recall is null in a quarter of
    the row where no needle lay."""
    random = np.random.default_rng(seed)
    bits, copied = [], []
    for distance in distances(context):
        found = score(logits, induction_rows(distance, context, ROWS, random), batch_rows, device)
        bits.append(float(found.bits[:, distance:].mean()))
        copied.append(float(found.right[:, distance:].mean()))
    rows, far = needle_rows(context, ROWS * QUARTERS, random)
    recalled = score(logits, rows, batch_rows, device).right[:, -1]
    quarters = (far - 1) * QUARTERS // context
    recall = [
        float(recalled[quarters == each].mean()) if (quarters == each).any() else None for each in range(QUARTERS)
    ]
    known = {"distances": distances(context), "induction_bits": bits, "copy_accuracy": copied}
    return known | {"needle_recall": recall}


def of_text(
    logits: Logits, dataset: Dataset, *, context: int, batch_rows: int, device: torch.device, seed: int = 0
) -> dict[str, Any]:
    """Bits by position and calibration on ROWS windows of a string, the same ones for the same seed.

    Raises ValueError for a string of fewer than context + 1 characters.
    """
    ends = target_positions(len(dataset.data), context=context + 1, slices=ROWS, seed=seed)
    found = score(logits, dataset.data[ends[:, None] + np.arange(-context, 1)], batch_rows, device)
    begins = [2**power for power in range(31) if 2**power <= context]
    bits = [float(found.bits[:, begin - 1 : 2 * begin - 1].mean()) for begin in begins]
    bins = np.minimum((found.confidence * BINS).astype(int), BINS - 1).ravel()
    counts = np.bincount(bins, minlength=BINS)
    sums = [np.bincount(bins, each.ravel().astype(float), BINS) for each in (found.confidence, found.right)]
    confidence, accuracy = (total / np.maximum(counts, 1) for total in sums)
    return {
        "task": dataset.name,
        "split": dataset.split,
        "positions": begins,
        "bits_by_position": bits,
        "calibration_error": float(np.abs(sums[0] - sums[1]).sum() / counts.sum()),
        "calibration_counts": counts.tolist(),
        "calibration_confidence": confidence.tolist(),
        "calibration_accuracy": accuracy.tolist(),
    }


def diagnose(
    logits: Logits, datasets: Sequence[Dataset], *, context: int, batch_rows: int, device: torch.device
) -> dict[str, Any]:
    """The probes, and under `texts` a record for each string that is long enough."""
    same = {"context": context, "batch_rows": batch_rows, "device": device}
    long_enough = [one for one in datasets if not one.skipped and len(one.data) > context]
    return probes(logits, **same) | {"texts": [of_text(logits, one, **same) for one in long_enough]}
