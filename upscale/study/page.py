"""What a report of a grid is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from upscale.report.runs import UNKNOWN


@dataclass(frozen=True)
class Table:
    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Page:
    tables: list[Table] = field(default_factory=list)
    pictures: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """png and svg by the name that follows the study's."""
    record: dict[str, Any] = field(default_factory=dict)
    """What the tables and pictures are made of, as JSON."""


def with_interval(number: float, low: float, high: float, form: str) -> str:
    """A number and its interval, each in a format such as '.2f'; a dash where there is no interval."""
    interval = f"({low:{form}} to {high:{form}})" if math.isfinite(low) else f"({UNKNOWN})"
    return f"{number:{form}} {interval}"


def or_dash(number: float, form: str = ".3f") -> str:
    """A number in a format, '.3f' for bits; a dash where it is not finite."""
    return f"{number:{form}}" if math.isfinite(number) else UNKNOWN


def plain(given: Any) -> Any:
    """The same as JSON takes it: lists for tuples, null for what is not finite."""
    if isinstance(given, dict):
        return {key: plain(inner) for key, inner in given.items()}
    if isinstance(given, (list, tuple)):
        return [plain(inner) for inner in given]
    return None if isinstance(given, float) and not math.isfinite(given) else given
