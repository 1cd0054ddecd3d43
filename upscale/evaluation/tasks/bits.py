"""bits, bitsflip and bitsrep: random words of bits and what follows from them."""

from __future__ import annotations

import numpy as np

from upscale.evaluation.tasks.generated import GeneratedTask


def _written(bits: np.ndarray) -> bytes:
    return b"".join(b"0" if bit else b"1" for bit in bits)


def bits_string(random: np.random.Generator) -> bytes:
    """Two random words of 5 bits, then their xor, and, or and equality, True written as "0"."""
    first, second = random.integers(2, size=(2, 5)).astype(bool)
    return _written(np.concatenate([first, second, first ^ second, first & second, first | second, first == second]))


def bitsflip_string(random: np.random.Generator) -> bytes:
    """6 random bits, then the same bits in reverse."""
    word = random.integers(2, size=6).astype(bool)
    return _written(np.concatenate([word, word[::-1]]))


def bitsrep_string(random: np.random.Generator) -> bytes:
    """3 random bits, written three times."""
    return _written(random.integers(2, size=3).astype(bool)) * 3


BITS = GeneratedTask(
    name="bits",
    definition="two words of 5 bits, their xor, and, or and equality",
    optimal_bits_per_character=10 / 31,
    delimited=True,
    string=bits_string,
)
BITSFLIP = GeneratedTask(
    name="bitsflip",
    definition="6 random bits and their reverse",
    optimal_bits_per_character=1 / 2,
    delimited=False,
    string=bitsflip_string,
)
BITSREP = GeneratedTask(
    name="bitsrep",
    definition="3 random bits, three times",
    optimal_bits_per_character=1 / 3,
    delimited=False,
    string=bitsrep_string,
)
