"""Ends a rank that waits for one that is gone: no hang outlasts `engine.timeout_seconds`.

The thread that does so also shows the supervisor that the process runs at all, which a stopped one cannot: it touches
the file that HEARTBEAT names, in which `timeout_seconds` stands, for who has not read the config.

A time-out of the process group would not do: DeepSpeed makes groups of its own with torch's default of 30 minutes, and
NCCL fails in its own ways. This looks at the loop instead.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from upscale.errors import RUN_ERROR_EXIT_CODE

HEARTBEAT = "UPSCALE_HEARTBEAT"
"""Environment variable with the file that this rank touches every second. The supervisor gives each rank its own; the
job script of slurm/ gives all ranks of a step one, so that it is told of a step in which nobody is left to notice."""


class Watchdog:
    """Calls `describe` and ends the process when no `beat` came for `timeout_seconds`."""

    def __init__(self, timeout_seconds: float, describe: Callable[[], str]):
        self.timeout_seconds, self.describe = timeout_seconds, describe
        self._last_beat = time.monotonic()
        self._heartbeat = os.environ.get(HEARTBEAT)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self.beat()
        self._show_life(str(math.ceil(self.timeout_seconds)))
        self._thread.start()
        return self

    def __exit__(self, *_problem) -> None:
        self._over.set()

    def beat(self) -> None:
        """The loop is alive."""
        self._last_beat = time.monotonic()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self.timeout_seconds / 4)):
            self._show_life()
            if time.monotonic() - self._last_beat > self.timeout_seconds:
                try:
                    print(f"error: {self.describe()}", file=sys.stderr, flush=True)
                finally:  # also when the terminal is gone
                    os._exit(RUN_ERROR_EXIT_CODE)

    def _show_life(self, content: str | None = None) -> None:
        if self._heartbeat:
            try:
                if content:
                    Path(self._heartbeat).write_text(content)
                Path(self._heartbeat).touch()
            except OSError:  # the supervisor and its folder are gone
                self._heartbeat = None
