"""Running a study's members on this machine, one after the other, each supervised as launch/local.sh does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from upscale.checkpoint.layout import METRICS
from upscale.console.progress import status_line
from upscale.console.text import duration
from upscale.errors import INTERRUPTED_EXIT_CODE, RUN_ERROR_EXIT_CODE, STOPPED_EXIT_CODE
from upscale.launch import signals
from upscale.study.members import Member
from upscale.training.record import read_steps

CONSOLE = "console.txt"
"""In a member's run directory: everything its processes printed."""
LAST_LINES = 6
POLL_SECONDS, PROGRESS_SECONDS = 0.1, 2.0


class Runner:
    """Trains what has not finished. A failure leaves out what would have continued it, and nothing else."""

    def __init__(self, members: Sequence[Member], ranks: int | None):
        self.members, self.ranks = members, ranks
        self.failed: list[str] = []
        self.stopping: int | None = None
        self.process: subprocess.Popen | None = None

    def run(self) -> int:
        """0 when all have finished, 1 after a failure, 75 or 130 when a signal asked to stop."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves SIGHUP
                signal.signal(number, self._receive)
        for place, member in enumerate(self.members, 1):
            title = f"[{place}/{len(self.members)}] {member.name}"
            if member.finished():
                self._say(f"{title}: finished before")
            elif unfinished := [one.name for one in member.needs if one.name in self.failed]:
                self._fail(member, f"{title}: left out, since {', '.join(unfinished)} has not finished")
            else:
                self._train(member, title)
            if self.stopping is not None:
                self._say(f"{title}: stopped by {signal.Signals(self.stopping).name}; the same command goes on here")
                return INTERRUPTED_EXIT_CODE if self.stopping == signal.SIGINT else STOPPED_EXIT_CODE
        return RUN_ERROR_EXIT_CODE if self.failed else 0

    def _train(self, member: Member, title: str) -> None:
        seen, begin = member.seen(), time.monotonic()
        console = member.directory / CONSOLE
        self._say(f"{title}: " + (f"continues at {seen:,} of" if seen else "trains on") + f" {member.instances:,} rows")
        words = [sys.executable, "-m", "upscale.launch.supervisor", *member.arguments]
        words += ["--ranks", str(self.ranks)] if self.ranks else []
        member.directory.mkdir(parents=True, exist_ok=True)
        with open(console, "ab") as file:
            # A session of its own: Ctrl-C comes to the ranks through us only, and once.
            environment = {**os.environ, "PYTHONPATH": _with_package(os.environ.get("PYTHONPATH"))}
            environment[signals.SUPERVISOR] = str(os.getpid())  # and it stops when this process is killed
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True, env=environment
            )
        if self.stopping is not None:  # it came while the process was being started
            self._receive(self.stopping, None)
        code = _wait(self.process, member, title)
        self.process = None
        if self.stopping is not None:
            return
        if code == 0 and member.finished():
            self._say(f"{title}: finished after {duration(time.monotonic() - begin)}")
            return
        lines = console.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        told = "\n".join(f"    {line}" for line in lines)
        self._fail(member, f"{title}: FAILED with exit code {code}; the end of {console}:\n{told}")

    def _receive(self, number: int, _frame) -> None:
        """Hand the signal to the supervisor, which hands it to every rank: they save, or end at once, as it asks.

        A terminal that goes away asks to save.
        """
        self.stopping = number
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    def _fail(self, member: Member, message: str) -> None:
        self.failed.append(member.name)
        self._say(message)

    def _say(self, text: str) -> None:
        print(text, flush=True)


def _with_package(path: str | None) -> str:
    """The children run this very package, wherever it is."""
    return os.pathsep.join([str(Path(__file__).parents[2]), *([path] if path else [])])


def _wait(process: subprocess.Popen, member: Member, title: str) -> int:
    """The exit code, when it has ended; until then a terminal shows how far it is."""
    shown = time.monotonic()
    with status_line(sys.stdout) as show:
        while (code := process.poll()) is None:
            time.sleep(POLL_SECONDS)
            if show and time.monotonic() - shown > PROGRESS_SECONDS:
                shown = time.monotonic()
                show(f"{title}: {_progress(member)}")
    return code


def _progress(member: Member) -> str:
    try:
        last = read_steps(member.directory / METRICS)[-1]
    except (ValueError, IndexError):
        return "starting"
    left = last.time_left_text(member.instances)
    return f"{last.instances:,} of {member.instances:,} rows, {last.loss_text}, {left} left"
