"""The diagnostics of what was learnt, one target at a time: slow and obvious."""

from __future__ import annotations

import math


def softmax(logits: list[float]) -> list[float]:
    highest = max(logits)
    weights = [math.exp(one - highest) for one in logits]
    return [weight / sum(weights) for weight in weights]


def targets(logits, row: bytes) -> list[tuple[int, int, list[float]]]:
    """(characters before it, target, probabilities) of every target of a row; `logits` takes what is before it."""
    return [(place, row[place], softmax(logits(row[:place]))) for place in range(1, len(row))]


def repeated(logits, rows: list[bytes], distance: int) -> tuple[float, float]:
    """Mean bits, and share most likely, of the bytes that repeat, from the second one of the repetition on."""
    bits, right = [], []
    for row in rows:
        for place, target, probabilities in targets(logits, row):
            if place > distance:
                bits.append(-math.log2(probabilities[target]))
                right.append(probabilities[target] == max(probabilities))
    return sum(bits) / len(bits), sum(right) / len(right)


def by_position(logits, rows: list[bytes]) -> dict[int, float]:
    """Mean bits by the number of characters before the target: 1, 2 to 3, 4 to 7, ..., by the first of each."""
    found: dict[int, list[float]] = {}
    for row in rows:
        for place, target, probabilities in targets(logits, row):
            found.setdefault(2 ** math.floor(math.log2(place)), []).append(-math.log2(probabilities[target]))
    return {begin: sum(bits) / len(bits) for begin, bits in found.items()}


def calibration_error(logits, rows: list[bytes], bins: int = 10) -> float:
    """Mean over targets of how far their bin's mean confidence is from its share that was right."""
    found: dict[int, list[tuple[float, bool]]] = {}
    for row in rows:
        for _, target, probabilities in targets(logits, row):
            most = max(probabilities)
            found.setdefault(min(int(most * bins), bins - 1), []).append((most, probabilities[target] == most))
    total = sum(map(len, found.values()))
    return sum(abs(sum(p for p, _ in each) - sum(right for _, right in each)) for each in found.values()) / total
