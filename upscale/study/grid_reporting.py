"""What a study of a grid found: the page of its kind of report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from upscale.study import minutes, page, scaling_page, stability_page, transfer
from upscale.study.grid import GridPlan

PAGES = {
    "scaling": scaling_page.page,
    "transfer": transfer.page,
    "stability": stability_page.page,
    "minutes": minutes.page,
}


def write(plan: GridPlan, command: Sequence[str]) -> str:
    """The tables for the terminal, after writing the results' files, as `page.write` does.

    Raises UserError where nothing can be written, and ValueError for a run's damaged file.
    """
    members = plan.members()
    finished = [member for member in members if member.finished()]
    if not finished:
        return "nothing to report yet: no training has finished"
    found = PAGES[plan.study.report](plan)
    record = {**found.record, "members": {m.name: {"arguments": m.arguments, **m.training()} for m in finished}}
    state = f"{len(finished)} of {len(members)} trainings have finished."
    return page.write(dataclasses.replace(found, record=record, state=state), plan.study, plan.to, command)
