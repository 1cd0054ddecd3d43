"""What a study of a grid found: tables for the terminal and in Markdown, everything as JSON, and pictures."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from upscale.config import files as config_files
from upscale.console.text import aligned_table
from upscale.errors import UserError
from upscale.files import write_atomically
from upscale.study import minutes, scaling_page, stability_page, transfer
from upscale.study.grid import GridPlan
from upscale.study.page import Page
from upscale.study.reporting import reading, training

REPORTS = {
    "scaling": scaling_page.page,
    "transfer": transfer.page,
    "stability": stability_page.page,
    "minutes": minutes.page,
}


def write(plan: GridPlan, words: Sequence[str]) -> str:
    """Writes NAME.md, NAME.json and the pictures into the folder of the results; returns the tables for the terminal.

    What stands below `## Reading` in an earlier NAME.md stays. Raises UserError where nothing can be written, and
    ValueError for a run's damaged file.
    """
    members = plan.members()
    finished = [member for member in members if member.finished()]
    if not finished:
        return "nothing to report yet: no training has finished"
    page = REPORTS[plan.study.report](plan)
    stem = plan.to / plan.study.name
    record = {
        "study": plan.study.model_dump(mode="json"),
        "command": shlex.join(words),
        "versions": config_files.versions(),
        **page.record,
        "members": {m.name: {"arguments": m.arguments, **training(m.directory)} for m in finished},
    }
    state = f"{len(finished)} of {len(members)} trainings have finished."
    try:
        plan.to.mkdir(parents=True, exist_ok=True)
        write_atomically(stem.with_suffix(".json"), (json.dumps(record, indent=1) + "\n").encode())
        for name, endings in page.pictures.items():
            for ending, picture in endings.items():
                write_atomically(plan.to / f"{plan.study.name}-{name}.{ending}", picture)
        target = stem.with_suffix(".md")
        write_atomically(target, (_markdown(plan, page, state, words) + reading(target)).encode())
    except OSError as error:
        raise UserError(f"the results cannot be written to {plan.to}: {error.strerror or error}; choose --to") from None
    tables = [f"{table.title}\n{aligned_table(table.heads, table.rows)}\n{table.note}" for table in page.tables]
    pictures = ", ".join(f"-{name}.png and .svg" for name in page.pictures)
    return "\n\n".join([state, *tables, f"written: {stem}.md, .json, {pictures}"])


def _markdown(plan: GridPlan, page: Page, state: str, words: Sequence[str]) -> str:
    parts = [f"# The study {plan.study.name}", state]
    for table in page.tables:
        lines = [table.heads, ["---"] * len(table.heads), *table.rows]
        parts += [f"## {table.title}", "\n".join(f"| {' | '.join(line)} |" for line in lines), table.note]
    parts += [f"![{name}]({plan.study.name}-{name}.png)" for name in page.pictures]
    return "\n\n".join([*filter(None, parts), f"    {shlex.join(words)}"]) + "\n"
