"""ndfa: one word repeated, from a small non-deterministic automaton."""

from __future__ import annotations

import math

import numpy as np

from upscale.evaluation.tasks.generated import GeneratedTask, binary_entropy

WORDS = (b"abc!", b"uvw!", b"klm!")
STOP_PROBABILITY = 1 / 4


def ndfa_string(random: np.random.Generator) -> bytes:
    """s w^k s: one of three words, repeated k times with P(k) = (3/4)^k / 4."""
    word = WORDS[random.integers(len(WORDS))]
    return b"s" + word * int(random.geometric(STOP_PROBABILITY) - 1) + b"s"


NDFA = GeneratedTask(
    name="ndfa",
    definition="s w^k s with w one of abc! uvw! klm! and k geometric",
    optimal_bits_per_character=(4 * binary_entropy(STOP_PROBABILITY) + 3 / 4 * math.log2(3)) / 15,
    delimited=True,
    string=ndfa_string,
)
