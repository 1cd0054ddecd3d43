"""Curves and tables of one or more runs: one self-contained HTML page, and its pictures as PNG and SVG beside it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from upscale.files import write_atomically
from upscale.report.figures import draw, of_all_tasks
from upscale.report.page import build
from upscale.report.runs import Run, read_runs


def write(runs: Sequence[Path], to: Path) -> Path:
    """The path of the page `index.html`, after writing it, PNGs and SVGs of run directories into the directory `to`.

    The page holds its pictures, so it can be mailed or copied alone. The same input gives the same bytes. Each file is
    replaced atomically and the page comes last, so that a reader never meets half a page.

    Raises ValueError, with what was given and what is allowed, for a path that is no run directory, a run without
    metrics, a damaged line (file and line) or a target that cannot be written.
    """
    return write_page(read_runs([Path(run) for run in runs]), Path(to))


def write_page(read: Sequence[Run], to: Path) -> Path:
    """As `write`, for runs that have been read."""
    try:
        to.mkdir(parents=True, exist_ok=True)
        # before the drawing, which takes seconds: can a file be made here at all?
        tempfile.TemporaryFile(dir=to).close()
        pictures = draw(read)
        files = {picture.name: picture.drawing.files for picture in pictures} | {"tasks": of_all_tasks(read)}
        for name, endings in files.items():
            for ending, content in endings.items():
                write_atomically(to / f"{name}.{ending}", content)
        write_atomically(to / "index.html", build(read, pictures).encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise ValueError(
            f"cannot write the report to {to}: {error.strerror or error}; --to takes a directory that exists or can be "
            "made, and that you may write to"
        ) from error
    return to / "index.html"
