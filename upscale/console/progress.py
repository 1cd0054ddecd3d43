"""How far a long piece of work is: a bar or a line on a terminal, a plain line now and then in a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich import progress
from rich.console import Console
from rich.markup import escape

SECONDS_BETWEEN_LINES = 15


class Progress:
    """Counts bytes of `total` (None: unknown); use as a context, call with the bytes done since."""

    def __init__(self, label: str, total: int | None) -> None:
        self.label, self.total, self.done = label, total or None, 0
        self.bar = _bar() if sys.stderr.isatty() else None
        self.started = self.shown = time.perf_counter()

    def __enter__(self) -> Progress:
        if self.bar:
            self.task = self.bar.add_task(self.label, total=self.total)
            self.bar.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self.bar:
            self.bar.stop()
        elif error is None:
            self._print_line()

    def __call__(self, count: int) -> None:
        self.done += count
        if self.bar:
            self.bar.update(self.task, advance=count)
        elif time.perf_counter() - self.shown >= SECONDS_BETWEEN_LINES:
            self._print_line()

    def _print_line(self) -> None:
        self.shown = time.perf_counter()
        words = [self.label, f"{self.done / 1e6:,.1f} MB"]
        if self.total:
            words.append(f"of {self.total / 1e6:,.1f} ({min(1.0, self.done / self.total):.0%})")
        print(*words, f"{self.shown - self.started:.0f} s", file=sys.stderr, flush=True)


@contextmanager
def status_line(stream: TextIO, wanted: bool = True) -> Iterator[Callable[[str], None] | None]:
    """A function that shows a text on the last line of a terminal, in place of the text before; the line goes at the
    block's end. None where `stream` is no terminal, or the line is not wanted."""
    console = Console(file=stream)
    if not wanted or not console.is_terminal:
        yield None
        return
    with console.status("starting") as status:
        yield lambda text: status.update(escape(text))


def _bar() -> progress.Progress:
    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TaskProgressColumn(),
        progress.TimeElapsedColumn(),
        console=Console(stderr=True),
        redirect_stdout=False,
    )
