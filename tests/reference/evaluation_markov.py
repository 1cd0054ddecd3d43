"""Slow, obvious oracles for the evaluation: a Markov model of dictionaries, and the metric as a loop."""

from __future__ import annotations

import math
from collections import Counter


def code_length(window: bytes, order: int, smoothing: float, symbols: int, *, published: bool) -> float:
    """-log2 p of the window's last character under a Markov model counted on the characters before it."""
    before, target = window[:-1], window[-1:]
    context = before[len(before) - order :]
    pairs, contexts = Counter(), Counter()
    for end in range(order, len(before)):
        pairs[before[end - order : end + 1]] += 1
        contexts[before[end - order : end]] += 1
    if published and order > 0:
        contexts[context] += 1
    return -math.log2((pairs[context + target] + smoothing) / (contexts[context] + smoothing * symbols))


def markov_table(
    data: bytes, positions: list[int], context: int, orders: int, lambdas: tuple[float, ...], *, published: bool
) -> list[list[float]]:
    """Mean code length, table[order][lambda], without the published division by too few windows."""
    symbols = len(set(data))
    windows = [data[position - context + 1 : position + 1] for position in positions]
    return [
        [
            sum(code_length(window, order, smoothing, symbols, published=published) for window in windows)
            / len(windows)
            for smoothing in lambdas
        ]
        for order in range(orders)
    ]


def bits_per_character(predict, data: bytes, positions: list[int], context: int) -> float:
    """The metric one slice at a time; `predict` maps a list of bytes to 256 probabilities."""
    total = 0.0
    for position in positions:
        probabilities = predict(list(data[position - context + 1 : position]))
        total -= math.log2(probabilities[data[position]])
    return total / len(positions)
