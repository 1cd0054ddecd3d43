"""Synthetic tasks: an endless supply of strings from one grammar, joined to one long string.

The paper's (Bloem 2025, arXiv 2506.20057) have the grammars of the public code, which is where the paper and its code
differ: the published champ counts in hexadecimal although the paper speaks of digits, and bits writes True as "0".
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from upscale.evaluation.dataset import Dataset
from upscale.evaluation.tasks.base import CHARACTERS, Task

DELIMITER = b"|"


@dataclass(frozen=True)
class GeneratedTask(Task):
    """A task whose strings are drawn from a grammar. Delimited ones write "|" before the first and after every string.

    `optimal_bits_per_character` is the entropy rate for a reader who knows the grammar and its state: bits a string
    over mean characters a string, delimiter included. It ignores what learning the grammar inside one slice costs, so a
    zero-shot model cannot quite reach it; for toy and toy2, whose words and symbols must first be seen, it is far out
    of reach.
    """

    optimal_bits_per_character: float
    delimited: bool
    string: Callable[[np.random.Generator], bytes]
    """Draws one string, without delimiter."""

    def generate(self, characters: int = CHARACTERS, *, seed: int = 0) -> bytes:
        """At least `characters` bytes that end with a whole string; the same for the same seed and task."""
        random = np.random.default_rng([seed, zlib.crc32(self.name.encode())])
        delimiter = DELIMITER if self.delimited else b""
        parts, length = [delimiter], len(delimiter)
        while length < characters:
            parts.append(self.string(random) + delimiter)
            length += len(parts[-1])
        return b"".join(parts)

    def load(self, characters: int = CHARACTERS, *, seed: int = 0) -> Dataset:
        """What `generate` gives, to measure a model on."""
        data = np.frombuffer(self.generate(characters, seed=seed), np.uint8)
        return Dataset(self.name, "task", data, "generated", self.optimal_bits_per_character)


def binary_entropy(probability: float) -> float:
    """Bits in one draw of a coin with this probability, strictly between 0 and 1."""
    return -probability * math.log2(probability) - (1 - probability) * math.log2(1 - probability)
