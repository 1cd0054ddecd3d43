"""What every evaluation task is: a name, a sentence that describes it, and how its string of characters is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from upscale.evaluation.dataset import Dataset

CHARACTERS = 100_000
HELD_OUT_SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Task:
    """One evaluation task. Every instance that a file of this room defines is one, found by its name."""

    name: str
    definition: str
    """What its characters are, for reports and messages."""
    kind: ClassVar[Literal["task", "text"]]
    """`task`: generated; `text`: read from a file."""

    def load(
        self,
        *,
        data_dir: str | Path | None = None,
        split: str = "validation",
        characters: int = CHARACTERS,
        seed: int = 0,
    ) -> Dataset:
        """The string to measure a model on. Texts read the first two arguments, generated tasks the last two."""
        raise NotImplementedError
