"""One string to be predicted, and the error that every mistake of a user in this room raises."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from upscale.errors import UserError


class EvaluationError(UserError, ValueError):
    """A name, a file or a number the evaluation cannot work with; a ValueError that the command line exits 2 for."""


@dataclass(frozen=True)
class Dataset:
    """A task or a text as one string of bytes.

    Two datasets are equal when they have the same name, split and bytes, so results can be cached by dataset.

    Raises ValueError when `data` is not a one-dimensional uint8 array.
    """

    name: str
    kind: Literal["task", "text"]
    data: np.ndarray = field(compare=False, repr=False)
    """(characters,), uint8; empty when skipped."""
    split: str | None
    """`generated` (tasks), `excerpt` (shipped text), `data_dir` (the user's file), `validation` or `test` (of a
    prepared corpus), None when there is nothing."""
    optimal_bits_per_character: float | None = None
    """The entropy rate with grammar and state known, where that is known."""
    skipped: str | None = None
    """Why there is nothing to measure, else None."""
    digest: str = field(init=False, repr=False)
    """SHA-256 of the bytes, by which ranks check that they measure the same string."""

    def __post_init__(self):
        if self.data.ndim != 1 or self.data.dtype != np.uint8:
            raise ValueError(
                f"{self.name}: data must be a (characters,) uint8 array, not {self.data.dtype} {self.data.shape}"
            )
        object.__setattr__(self, "digest", hashlib.sha256(self.data.tobytes()).hexdigest())
