"""How far a long piece of work is: a bar on a terminal, a plain line now and then in a file."""

from __future__ import annotations

import sys
import time

BAR = 24
SECONDS_ON_TERMINAL, SECONDS_IN_FILE = 0.2, 15


class Progress:
    """Counts bytes of `total` (None: unknown); use as a context, call with the bytes done since."""

    def __init__(self, label: str, total: int | None) -> None:
        self.label, self.total, self.done = label, total, 0
        self.terminal = sys.stderr.isatty()
        self.started = self.shown = time.perf_counter()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if error is None:
            self._show(time.perf_counter())
        if self.terminal:
            print(file=sys.stderr)

    def __call__(self, count: int) -> None:
        self.done += count
        now = time.perf_counter()
        if now - self.shown >= (SECONDS_ON_TERMINAL if self.terminal else SECONDS_IN_FILE):
            self._show(now)

    def _show(self, now: float) -> None:
        self.shown = now
        words = [self.label, f"{self.done / 1e6:,.1f} MB"]
        if self.total:
            share = min(1.0, self.done / self.total)
            if self.terminal:
                words.insert(1, "[" + ("#" * round(BAR * share)).ljust(BAR) + "]")
            words.append(f"of {self.total / 1e6:,.1f} ({share:.0%})")
        words.append(f"{now - self.started:.0f} s")
        text = " ".join(words)
        print(
            f"\r\x1b[K{text}" if self.terminal else text, end="" if self.terminal else "\n", file=sys.stderr, flush=True
        )
