"""What a study's report is made of, and how it is written: tables, pictures and JSON."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upscale.config import files as config_files
from upscale.console.text import aligned_table
from upscale.errors import UserError
from upscale.files import write_atomically, write_json
from upscale.report.runs import UNKNOWN
from upscale.study.schema import AnyStudy

READING = "## Reading"
ONE_SEED = (
    "One seed. Trainings with another one may differ by more than what is compared here, and no error on this page "
    "tells by how much: add seeds before anything is concluded from it."
)


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
    """png and svg by the name that follows the study's; "" where nothing follows it."""
    record: dict[str, Any] = field(default_factory=dict)
    """What the tables and pictures are made of, as JSON."""
    state: str = ""
    """What stands before the tables."""
    closing: Sequence[str] = ()
    """Paragraphs after the tables in Markdown."""


def write(page: Page, study: AnyStudy, to: Path, command: Sequence[str]) -> str:
    """The tables for the terminal, after writing NAME.md, NAME.json and the pictures into the folder `to`.

    What stands below `## Reading` in an earlier NAME.md stays. Raises UserError where nothing can be written.
    """
    name, stem, words = study.name, to / study.name, shlex.join(command)
    own = {"study": study.model_dump(mode="json"), "command": words, "versions": config_files.versions()}
    pictures = {name + (f"-{kind}" if kind else ""): endings for kind, endings in page.pictures.items()}
    states = [page.state, ONE_SEED if len(study.seeds) == 1 else ""]
    parts = [f"# The study {name}", *states]
    for table in page.tables:
        lines = [table.heads, ["---"] * len(table.heads), *table.rows]
        parts += [f"## {table.title}", "\n".join(f"| {' | '.join(line)} |" for line in lines), table.note]
    links = [f"![{kind or name}]({picture}.png)" for kind, picture in zip(page.pictures, pictures, strict=True)]
    parts += [*page.closing, *links, f"    {words}"]
    try:
        to.mkdir(parents=True, exist_ok=True)
        write_json(stem.with_suffix(".json"), own | page.record)
        for picture, endings in pictures.items():
            for ending, content in endings.items():
                write_atomically(to / f"{picture}.{ending}", content)
        markdown = stem.with_suffix(".md")
        before = markdown.read_text(encoding="utf-8") if markdown.exists() else ""
        _, heading, reading = before.partition(f"\n{READING}\n")
        write_atomically(markdown, ("\n\n".join(filter(None, parts)) + "\n" + heading + reading).encode())
    except OSError as error:
        raise UserError(f"the results cannot be written to {to}: {error.strerror or error}; choose --to") from None
    shown = states
    for table in page.tables:
        shown.append(f"{table.title}\n{aligned_table(table.heads, table.rows)}\n{table.note}".rstrip())
    files = ", ".join(f"{picture.removeprefix(name)}.png and .svg" for picture in pictures)
    return "\n\n".join(filter(None, [*shown, f"written: {stem}.md, .json, {files}"]))


def with_interval(number: float, low: float, high: float, form: str) -> str:
    """A number and its interval, each in a format such as '.2f'; a dash where there is no interval."""
    interval = f"({low:{form}} to {high:{form}})" if math.isfinite(low) else f"({UNKNOWN})"
    return f"{number:{form}} {interval}"


def or_dash(number: float, form: str = ".3f") -> str:
    """A number in a format, '.3f' for bits; a dash where it is not finite."""
    return f"{number:{form}}" if math.isfinite(number) else UNKNOWN


def as_json(given: Any) -> Any:
    """The same as JSON takes it: lists for tuples, null for what is not finite."""
    if isinstance(given, dict):
        return {key: as_json(inner) for key, inner in given.items()}
    if isinstance(given, (list, tuple)):
        return [as_json(inner) for inner in given]
    return None if isinstance(given, float) and not math.isfinite(given) else given
