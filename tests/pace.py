"""Time-outs that a loaded machine does not reach.

A time-out of a test says how long something may take on a free machine. Where the machine has less to give, by its load
or its cores, the time-out is longer in the same proportion.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence

# What a bare interpreter needs to start and end on a free core of a slow machine.
START_SECONDS = 0.05


def measure() -> float:
    """How many times longer than on a free machine things take now, at least 1.

    The larger of two signs: how long a process takes to start, and how many processes want to run on each core.
    """
    begin = time.monotonic()
    subprocess.run([sys.executable, "-I", "-S", "-c", ""], check=True)
    cores = len(os.sched_getaffinity(0))
    return max(1.0, (time.monotonic() - begin) / START_SECONDS, os.getloadavg()[0] / cores)


class Deadline:
    """A time-out of `seconds` on a free machine, which begins now."""

    def __init__(self, seconds: float):
        self.seconds, self.begin, self.stretch = seconds, time.monotonic(), 1.0

    def left(self) -> float:
        """Seconds until the time-out; 0 when it has passed. Only then is the machine's pace measured."""
        elapsed = time.monotonic() - self.begin
        if elapsed >= self.seconds * self.stretch:
            self.stretch = max(self.stretch, measure())
        return max(0.0, self.seconds * self.stretch - elapsed)

    def passed(self) -> bool:
        return self.left() == 0


def run(words: Sequence[str | os.PathLike], seconds: float, **options) -> subprocess.CompletedProcess:
    """`subprocess.run` of text with such a time-out; output and errors are captured."""
    deadline = Deadline(seconds)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        while not deadline.passed():
            try:
                output, errors = process.communicate(timeout=deadline.left())
            except subprocess.TimeoutExpired:
                continue
            return subprocess.CompletedProcess(words, process.returncode, output, errors)
        process.kill()
    raise AssertionError(f"{words} did not end within {seconds} s")
