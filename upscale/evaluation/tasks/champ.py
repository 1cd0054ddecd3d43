"""champ and champ_decimal: consecutive integers, after Champernowne's number."""

from __future__ import annotations

import math

import numpy as np

from upscale.evaluation.tasks.generated import GeneratedTask

NUMBERS = 256
STARTS = 2**24 - NUMBERS


def champ_string(random: np.random.Generator, form: str = "x") -> bytes:
    """256 consecutive integers from a random start, in lower-case hexadecimal (form "x") or decimal ("d")."""
    start = int(random.integers(STARTS))
    return "".join(format(number, form) for number in range(start, start + NUMBERS)).encode()


def champ_decimal_string(random: np.random.Generator) -> bytes:
    """`champ_string` in base 10, as the paper's text has it."""
    return champ_string(random, "d")


CHAMP = GeneratedTask(
    name="champ",
    definition="256 consecutive integers in hexadecimal, from a random start below 2^24",
    optimal_bits_per_character=math.log2(STARTS) / 1519.9,
    delimited=True,
    string=champ_string,
)
CHAMP_DECIMAL = GeneratedTask(
    name="champ_decimal",
    definition="256 consecutive integers in decimal, from a random start below 2^24",
    optimal_bits_per_character=math.log2(STARTS) / 1879.5,
    delimited=True,
    string=champ_decimal_string,
)
