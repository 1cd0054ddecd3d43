"""dyck: balanced brackets."""

from __future__ import annotations

import numpy as np

from upscale.evaluation.tasks.generated import GeneratedTask, binary_entropy

OPEN_PROBABILITY = 7 / 16


def dyck_string(random: np.random.Generator) -> bytes:
    """One opening bracket, then brackets that open with probability 7/16, until all are closed."""
    string, depth = bytearray(b"("), 1
    while depth:
        opens = random.random() < OPEN_PROBABILITY
        string += b"(" if opens else b")"
        depth += 1 if opens else -1
    return bytes(string)


DYCK = GeneratedTask(
    name="dyck",
    definition="balanced brackets that open with probability 7/16",
    optimal_bits_per_character=8 * binary_entropy(OPEN_PROBABILITY) / 10,
    delimited=True,
    string=dyck_string,
)
