"""What every evaluation task is: a name and a sentence that describes it; generated.py and text.py make its string."""

from __future__ import annotations

from dataclasses import dataclass

CHARACTERS = 100_000
HELD_OUT_SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Task:
    """One evaluation task, a GeneratedTask or a TextTask. Every instance that a file of this room defines is one, found
    by its name."""

    name: str
    definition: str
    """What its characters are, for reports and messages."""
