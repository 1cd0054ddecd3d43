"""The in-context Markov baseline: what counting n-grams inside the same window achieves (Bloem 2025).

For a window of `context` characters, a Markov model of order o is fitted on the first context - 1 of them and predicts
the last one:

    p(target | last o characters) = (N(o-gram, target) + lambda) / (N(o-gram) + lambda V)

with V the number of distinct symbols in the *whole* data: the baseline knows the alphabet (2 to 17 symbols in the
tasks), while a model of bytes has to find it among 256. lambda and order are those that are best on the very windows
reported; both choices favour the baseline. Two forms are computed, because the published one is not a probability:

- corrected: N(o-gram) counts the occurrences that are followed by a character of the window, so p sums to one, and the
  mean is over the windows;
- published: as in the code behind the paper's baselines. For orders above 0, N(o-gram) also counts the occurrence at
  the end of the window, whose successor is the target, so p sums to less than one and high orders suffer most; and the
  sum over 100 000 windows is divided by 100 000 - 512. That inflation is applied here as a constant factor, whatever
  our number of windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LAMBDAS = (1.0, 0.1, 0.01, 1e-4, 1e-6)
MAXIMAL_ORDER = 5
PUBLISHED_INFLATION = 100_000 / (100_000 - 512)

_CHUNK_ROWS = 4096


@dataclass(frozen=True)
class MarkovResult:
    """The best Markov model of one form, and every order beside it."""

    order: int
    smoothing: float
    """lambda of the best order."""
    bits_per_character: float
    bits_by_order: tuple[float, ...]
    """Bits per character for orders 0, 1, ..., each with its best lambda."""


@dataclass(frozen=True)
class MarkovBaseline:
    """Both forms on the same windows."""

    corrected: MarkovResult
    published: MarkovResult


def context_counts(windows: np.ndarray, orders: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each window's final o-gram occurs, and how often with the target after it, for o = 0 .. orders - 1.

    `windows` is (rows, context) uint8, the last column is the target. Returns two (orders, rows) int64 arrays: the
    occurrences of the o-gram that have a successor among the first context - 1 characters, and those followed by the
    target. Raises ValueError when orders exceeds context - 1.
    """
    rows, context = windows.shape
    if orders > context - 1:
        raise ValueError(
            f"orders 0 to {orders - 1} need {orders} characters before the target, windows have {context - 1}"
        )
    before, target = windows[:, :-1], windows[:, -1:]
    is_target = before == target
    follows = np.ones_like(is_target)
    occurrences = np.empty((orders, rows), np.int64)
    hits = np.empty((orders, rows), np.int64)
    for order in range(orders):
        if order:
            # An o-gram's occurrence is one of the (o-1)-gram whose character o places back agrees as well.
            follows[:, :order] = False
            follows[:, order:] &= before[:, :-order] == before[:, -order, None]
        occurrences[order] = follows.sum(axis=1)
        hits[order] = (follows & is_target).sum(axis=1)
    return occurrences, hits


def in_context(data: np.ndarray, positions: np.ndarray, *, context: int) -> MarkovBaseline:
    """Both forms of the baseline for the targets at `positions`.

    `data` is (characters,) uint8, `positions` are int64 indices of targets, each at least context - 1. Windows shorter
    than the highest order limit the orders. Raises ValueError when there is no position or one lacks its context.
    """
    if len(positions) == 0 or positions.min() < context - 1 or context < 2:
        raise ValueError(f"every target needs {context - 1} >= 1 characters before it, and there must be a target")
    orders = min(MAXIMAL_ORDER, context - 2) + 1
    symbols = np.count_nonzero(np.bincount(data, minlength=256))
    smoothing = np.array(LAMBDAS)[None, :, None]
    unfinished = (np.arange(orders) > 0)[:, None]
    offsets = np.arange(1 - context, 1)
    corrected, published = np.zeros((2, orders, len(LAMBDAS)))
    for start in range(0, len(positions), _CHUNK_ROWS):
        windows = data[positions[start : start + _CHUNK_ROWS, None] + offsets]
        occurrences, hits = context_counts(windows, orders)
        surprise = -np.log2(hits[:, None] + smoothing)
        for total, counts in ((corrected, occurrences), (published, occurrences + unfinished)):
            total += (surprise + np.log2(counts[:, None] + smoothing * symbols)).sum(axis=-1)
    return MarkovBaseline(
        corrected=_best(corrected / len(positions)),
        published=_best(published / len(positions) * PUBLISHED_INFLATION),
    )


def _best(bits: np.ndarray) -> MarkovResult:
    by_order: Sequence[float] = bits.min(axis=1).tolist()
    order = int(np.argmin(by_order))
    return MarkovResult(order, LAMBDAS[int(bits[order].argmin())], by_order[order], tuple(by_order))
