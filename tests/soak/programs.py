"""What the soak's processes run: the supervisor of launch/local.sh and its ranks, forked instead of started anew.

A rank remembers the rows that its lanes give (a line "round lane digest"), and does what it finds in SOAK/inject: file
`writer` crashes the thread that saves, `slow` holds a step up, and while `clock` is there time.time jumps by years.
A round's steps become slower after the sixtieth: while the soak waits for something else, a training must not come so
far that rounding alone grows to what the losses are allowed to differ by, which it does from step 170 on.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from upscale import train
from upscale.checkpoint import lock, writer
from upscale.console import command
from upscale.data import lanes
from upscale.distributed import world
from upscale.evaluation import suite
from upscale.launch import signals, supervisor

ALL_SIGNALS = set(signal.Signals)
EVALUATED_CHARACTERS = 600
QUICK_STEPS = 60
SLOWER_BY_SECONDS, SLOWEST_SECONDS = 0.05, 3.0
FAREWELL_SECONDS = 1.0
"""How long the peers of a lost rank look who is left, on a free machine: the wait that most kills end with."""
YEAR_SECONDS = 3e7


class Fork:
    """The part of subprocess.Popen that the supervisor uses, for a rank that has imported everything already."""

    def __init__(self, program: list[str], env: dict[str, str], start_new_session: bool):
        assert start_new_session
        self.args, self.returncode = program, None
        signal.pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS)  # those that come meanwhile are for both
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            _rank(env, program[1:])
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ALL_SIGNALS)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def supervise(folder: str, rows: str, arguments: list[str], grace_seconds: float, slower: float) -> None:
    """`python -m upscale.launch.supervisor ARGUMENTS`, which gives up on no step, since faults may repeat at one."""
    os.environ.update(SOAK=folder, SOAK_ROWS=rows, SOAK_SLOWER=str(slower), TMPDIR=f"{folder}/temporary")
    tempfile.tempdir = None
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also when the soak itself was started by nohup
    _register()
    supervisor.subprocess = SimpleNamespace(Popen=Fork, TimeoutExpired=subprocess.TimeoutExpired)
    supervisor.GRACE_SECONDS, supervisor.LONGEST_BACKOFF_SECONDS = grace_seconds, 0.5
    supervisor.SAME_STEP_FAILURES = 10**6
    command.run(partial(supervisor.main, program=("rank",)), arguments)


def _register() -> None:
    """Leave word of this process, since a fork has the environment and the command line of the server."""
    (Path(os.environ["SOAK"]) / "processes" / f"{os.getpid()}-{lock.start_ticks(os.getpid())}").touch()


def _rank(environment: dict[str, str], arguments: list[str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    signals.leave_quietly()
    signals.remember_stop_requests()
    signals.stop_with_supervisor()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ALL_SIGNALS)
    _register()
    _remember_rows()
    _obey(Path(os.environ["SOAK"]) / "inject")
    world.FAREWELL_SECONDS = min(world.FAREWELL_SECONDS, FAREWELL_SECONDS * float(os.environ["SOAK_SLOWER"]))
    suite.datasets = partial(suite.datasets, characters=EVALUATED_CHARACTERS)
    command.run(train.main, arguments)


def _remember_rows() -> None:
    draw = lanes.Lanes.draw
    file = open(Path(os.environ["SOAK_ROWS"], f"{os.environ['MASTER_PORT']}-{os.getpid()}"), "a")  # noqa: SIM115

    def draw_and_remember(self, rows_per_lane):
        rows = draw(self, rows_per_lane)
        for lane, part, round_ in zip(self.lanes, rows.chunk(len(self.lanes)), self.rounds.tolist(), strict=True):
            file.write(f"{round_} {lane} {hashlib.blake2b(part.numpy().tobytes(), digest_size=8).hexdigest()}\n")
        file.flush()
        return rows

    lanes.Lanes.draw = draw_and_remember


def _obey(orders: Path) -> None:
    """Look at the places where something can go wrong whether it should."""
    write, draw, now = writer.Writer._write_part, lanes.Lanes.draw, time.time
    jumps = random.Random(os.getpid())

    def ordered(name: str) -> bool:
        try:
            (orders / name).unlink()
        except FileNotFoundError:
            return False
        return True

    def crash_or_write(self, taken, partial_folder):
        if ordered("writer"):
            raise MemoryError("the thread that saves was told to crash")
        return write(self, taken, partial_folder)

    def wait_and_draw(self, rows_per_lane):
        if ordered("slow"):
            time.sleep(jumps.uniform(0.2, 2))
        beyond = int(self.rounds[0]) - QUICK_STEPS
        time.sleep(min(SLOWEST_SECONDS, max(0.0, SLOWER_BY_SECONDS * beyond)))
        return draw(self, rows_per_lane)

    writer.Writer._write_part, lanes.Lanes.draw = crash_or_write, wait_and_draw
    if (orders / "clock").exists():
        time.time = lambda: now() + YEAR_SECONDS * jumps.uniform(-10, 10)
