"""One panel of the page, with its words."""

from __future__ import annotations

from dataclasses import dataclass

from upscale.report.canvas import Drawing


@dataclass(frozen=True)
class Picture:
    """One panel of the page."""

    section: str
    """Where it belongs: loss, tasks, learnt, schedule or speed."""
    name: str
    """Of its files beside the page, without ending: letters, digits and dashes."""
    title: str
    unit: str
    """Of its vertical axis."""
    alt: str
    """What it shows with the final value of every line, for those who cannot see it."""
    note: str
    """What a reader must know to read it; may be empty."""
    drawing: Drawing
