"""What rows of tokens are like: how well they compress, how their tokens are spread, how much they repeat.

Every measure but the entropies by order looks inside one row at a time and is averaged over rows, since that is what a
model sees of a source: many sources give their tokens new names in every row.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from upscale.evaluation.markov import in_context

ENTROPY_ORDERS = 4
_TARGETS_PER_ROW = 8


@dataclass(frozen=True)
class Measures:
    """Means over the rows of one source or text."""

    rows: int
    length: int
    gzip_ratio: float
    """Bytes of a row after gzip (level 9, without its 18 bytes of frame), over the row's; one byte a token, or two."""
    distinct_tokens: float
    """Different tokens in a row."""
    entropy_by_order: tuple[float, ...]
    """Bits of a token given 0, 1, ... before it, counted over all rows together: too low where contexts are rare."""
    row_entropy: float
    """Bits of a token by the frequencies of its own row."""
    zipf_slope: float
    """Slope of log frequency against log rank in the mean row, -1 for Zipf's law, 0 for uniform tokens."""
    rank_frequencies: tuple[float, ...]
    """Mean frequency of a row's most frequent token, of its second, ..."""
    longest_repeat: float
    """Tokens of the longest string that occurs twice in a row (it may overlap itself)."""
    mean_repeat: float
    """Longest string that ends at a token and occurred before in the row, mean over tokens."""
    markov_bits_by_order: tuple[float, ...]
    """Bits per token of the in-context Markov model of each order (evaluation.markov), on windows of half a row."""

    @property
    def markov_bits(self) -> float:
        return min(self.markov_bits_by_order)


def measure(rows: np.ndarray) -> Measures:
    """The measures of (rows, length) uint8 or int16 tokens; at least one row of at least 16 tokens."""
    if rows.ndim != 2 or len(rows) == 0 or rows.shape[1] < 16:
        raise ValueError(f"rows are {rows.shape}; allowed: at least one row of at least 16 tokens")
    count, length = rows.shape
    repeats = np.stack([_repeats(row) for row in rows])
    frequencies = _rank_frequencies(rows)
    return Measures(
        rows=count,
        length=length,
        gzip_ratio=float(np.mean([len(zlib.compress(row.tobytes(), 9, -15)) / row.nbytes for row in rows])),
        distinct_tokens=float(np.mean([len(np.unique(row)) for row in rows])),
        entropy_by_order=tuple(_conditional_entropies(rows)),
        row_entropy=float(np.mean([_entropy(np.bincount(row)) for row in rows])),
        zipf_slope=_slope(frequencies, length),
        rank_frequencies=tuple(frequencies.tolist()),
        longest_repeat=float(repeats.max(axis=1).mean()),
        mean_repeat=float(repeats.mean()),
        markov_bits_by_order=_markov(rows),
    )


def _entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def _conditional_entropies(rows: np.ndarray) -> list[float]:
    """H(token | o before it) for o = 0, 1, ...: the entropy of (o + 1)-grams less that of their first o tokens."""
    found = []
    for order in range(ENTROPY_ORDERS):
        grams = np.lib.stride_tricks.sliding_window_view(rows, order + 1, axis=1).reshape(-1, order + 1)
        # One whole number a gram: 15 bits a token hold any vocabulary, and four of them 63.
        keys = np.zeros(len(grams), np.int64)
        for place in range(order + 1):
            contexts, keys = keys, (keys << 15) + grams[:, place]
        joint, before = (_entropy(np.unique(each, return_counts=True)[1]) for each in (keys, contexts))
        found.append(joint - before)
    return found


def _rank_frequencies(rows: np.ndarray) -> np.ndarray:
    counts = [np.sort(np.bincount(row))[::-1] for row in rows]
    total = np.zeros(max(map(len, counts)))
    for each in counts:
        total[: len(each)] += each
    return np.trim_zeros(total, "b") / rows.size


def _slope(frequencies: np.ndarray, length: int) -> float:
    """Least squares over the ranks that at least every second row has; 0 where that is one rank."""
    seen = frequencies[frequencies * length >= 0.5]
    if len(seen) < 2:
        return 0.0
    return float(np.polyfit(np.log(np.arange(1, len(seen) + 1)), np.log(seen), 1)[0])


def _repeats(row: np.ndarray) -> np.ndarray:
    """For each token the length of the longest string that ends there and also ended earlier, (length,) int64."""
    longest = np.zeros(len(row), np.int64)
    for shift in range(1, len(row)):
        same = row[shift:] == row[:-shift]
        place = np.arange(1, len(same) + 1)
        run = place - np.maximum.accumulate(np.where(same, 0, place))
        np.maximum(longest[shift:], run, out=longest[shift:])
    return longest


def _markov(rows: np.ndarray) -> tuple[float, ...]:
    """Windows of half a row; targets are spread over the other half."""
    count, length = rows.shape
    context = length // 2
    places = np.unique(np.linspace(context - 1, length - 1, _TARGETS_PER_ROW).astype(np.int64))
    positions = (np.arange(count)[:, None] * length + places).ravel()
    return in_context(np.ascontiguousarray(rows).ravel(), positions, context=context).corrected.bits_by_order
