"""Keeps a training alive on one machine: `launch/local.sh [--ranks N] --config F ...` starts this.

A rank that is lost ends the attempt; the next one starts all ranks anew, on a new port, from the newest valid
checkpoint, with fewer ranks when a GPU is gone. (torchrun's own restarts hang on gloo in about half of the cases
measured, so they are not used.)
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from upscale.config import files as config_files
from upscale.console import command
from upscale.distributed.watchdog import HEARTBEAT
from upscale.errors import (
    INTERRUPTED_EXIT_CODE,
    RUN_ERROR_EXIT_CODE,
    STOPPED_EXIT_CODE,
    USER_ERROR_EXIT_CODE,
    RunError,
    UserError,
)
from upscale.launch import signals

PROGRAM = (sys.executable, str(Path(__file__).parents[1] / "train.py"))
FINAL_EXIT_CODES = (0, USER_ERROR_EXIT_CODE, STOPPED_EXIT_CODE, INTERRUPTED_EXIT_CODE)
GRACE_SECONDS = 20.0
KILL_SECONDS = 30.0
"""How long a killed rank may take to go. One that a driver or a file system holds may never."""
COUNT_SECONDS = 300.0
SAME_STEP_FAILURES = 3
LONGEST_BACKOFF_SECONDS = 60.0
CPU_RANKS = 2


def main(arguments: list[str] | None = None, program: tuple[str, ...] = PROGRAM) -> int:
    parser = command.parser(
        "local", "Train on this machine and restart from the newest checkpoint when a rank is lost."
    )
    command.add_config(parser)
    parser.add_argument("--ranks", type=int, metavar="N", help=f"default: one per GPU, or {CPU_RANKS} without GPUs")
    parser.add_argument("--max-restarts", type=int, default=20, metavar="N", help="default: 20")
    options = parser.parse_intermixed_args(arguments)
    if options.ranks is not None and options.ranks < 1:
        raise UserError(f"--ranks {options.ranks}: must be at least 1")
    config = config_files.load(options.config, options.overrides).resolved()
    training = [*(["--config", options.config] if options.config else []), *options.overrides]
    supervisor = Supervisor(training, Path(config.run.dir), options.ranks, options.max_restarts, program)
    # Long enough for the other ranks, who wait for a stopped one too, to say so first.
    supervisor.silence_seconds = config.engine.timeout_seconds + GRACE_SECONDS
    signal.signal(signal.SIGINT, supervisor.forward)
    signals.catch_stop_signals(supervisor.forward)
    signals.stop_with_supervisor()
    return supervisor.run()


@dataclass
class Supervisor:
    """Attempts at one training until it ends by itself."""

    training: list[str]
    directory: Path
    wanted_ranks: int | None
    max_restarts: int
    program: tuple[str, ...] = PROGRAM
    ranks: list[subprocess.Popen] = field(default_factory=list)
    stopping: int | None = None
    gpus: int = 0
    """GPUs that answered before this attempt."""
    silence_seconds: float = float("inf")
    """A rank that has trained and then shown no life for so long is stopped or hangs."""
    stuck: list[subprocess.Popen] = field(default_factory=list)
    """Ranks of earlier attempts that were killed and did not go."""

    def run(self) -> int:
        """The exit code of the training; raises RunError when restarting does not help."""
        failed_at: list[int | None] = []
        while True:
            count = self.available_ranks()
            if self.stopping is not None:  # the signal came while there was no rank to hand it to
                return INTERRUPTED_EXIT_CODE if self.stopping == signal.SIGINT else STOPPED_EXIT_CODE
            self.say(f"starting {count} ranks" + (f" (restart {len(failed_at)})" if failed_at else ""))
            reason, code = self.attempt(count)
            if code in FINAL_EXIT_CODES:
                return code
            if self.stopping is not None:
                self.say(f"{reason}; not started again, because a stop was asked for")
                return 128 - code if code < 0 else code  # as a shell tells a signal
            step = self.last_step()
            failed_at.append(step)
            self.say(f"{reason}; last step logged: {step}")
            if failed_at[-SAME_STEP_FAILURES:] == [step] * SAME_STEP_FAILURES:
                raise RunError(
                    f"failed {SAME_STEP_FAILURES} times at the same step ({step}); see {self.directory}/log.txt"
                )
            if len(failed_at) > self.max_restarts:
                raise RunError(f"failed {len(failed_at)} times (--max-restarts {self.max_restarts}); giving up")
            # Progress since the last failure means the fault was from outside: no reason to wait.
            repeated = next((n for n, other in enumerate(reversed(failed_at)) if other != step), len(failed_at))
            self.pause(min(LONGEST_BACKOFF_SECONDS, 2.0 ** (repeated - 1)) if repeated > 1 else 0.5)

    def attempt(self, count: int) -> tuple[str, int]:
        """Start the ranks and wait; why and with which code they ended. None is left when it returns."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        program = [*self.program, *self.training]
        shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        shared[signals.SUPERVISOR] = os.getpid()
        folder = tempfile.TemporaryDirectory(prefix="upscale-", ignore_cleanup_errors=True)
        heartbeats = [Path(folder.name) / f"rank-{rank}" for rank in range(count)]
        try:
            for rank in range(count):
                place = {**shared, "RANK": rank, "LOCAL_RANK": rank, HEARTBEAT: heartbeats[rank]}
                environment = {**os.environ, **{name: str(value) for name, value in place.items()}}
                self.ranks.append(subprocess.Popen(program, env=environment, start_new_session=True))
            if self.stopping is not None:  # it came while they were being started
                self.forward(self.stopping, None)
            return self.watch(heartbeats)
        finally:
            self.end_all()
            folder.cleanup()

    def watch(self, heartbeats: list[Path]) -> tuple[str, int]:
        """Wait until every rank has ended, or some time after the first that failed or shows no life."""
        deadline: float | None = None
        # When each heartbeat was last seen to change, by our own clock, which does not jump; none before the first.
        seen: dict[Path, tuple[int, float]] = {}
        while True:
            for rank, path in enumerate(heartbeats):
                changed = modified(path)
                if changed is not None and (path not in seen or seen[path][0] != changed):
                    seen[path] = changed, time.monotonic()
                silent = path in seen and time.monotonic() - seen[path][1] > self.silence_seconds
                # Once another has failed, its time to answer runs, and its peers have said more than this would.
                if silent and deadline is None and self.ranks[rank].poll() is None:
                    reason = f"rank {rank} has shown no life for {self.silence_seconds:g} s and was killed"
                    return reason, RUN_ERROR_EXIT_CODE
            codes = [process.poll() for process in self.ranks]
            failed = [(rank, code) for rank, code in enumerate(codes) if code not in (None, 0)]
            if all(code is not None for code in codes) and not failed:
                return "finished", 0
            if failed and deadline is None:
                deadline = time.monotonic() + GRACE_SECONDS
                first = min(failed, key=lambda ended: ended[1])  # a signal is the cause, an exit code its consequence
            if failed and deadline and (None not in codes or time.monotonic() > deadline):
                hung = [rank for rank, code in enumerate(codes) if code is None]
                reason = f"rank {first[0]} ended with {describe(first[1])}"
                reason += f"; rank {', '.join(map(str, hung))} did not answer and was killed" if hung else ""
                return reason, first[1]
            time.sleep(0.1)

    def end_all(self) -> None:
        """Kill what is left of every rank's session, stopped processes included, and reap it."""
        for process in self.ranks:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + KILL_SECONDS
        stuck = []
        for rank, process in enumerate(self.ranks):
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.stuck.append(process)
                stuck.append(rank)
                self.say(
                    f"rank {rank} (process {process.pid}) was killed and does not go: a GPU, a driver or a file system "
                    "holds it"
                )
        self.ranks.clear()
        if stuck and self.gpus:
            self.leave_out(stuck)

    def leave_out(self, ranks: list[int]) -> None:
        """Do without the GPUs of these ranks from now on; raises RunError when there are no others."""
        names = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(self.gpus)))
        left = [name for rank, name in enumerate(names.split(",")) if rank not in ranks]
        if not left:
            raise RunError("no GPU is left that is not held; restart this machine and then the same command again")
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(left)
        self.say(f"going on with the GPUs {', '.join(left)}")

    def forward(self, number: int, _frame) -> None:
        """Hand a signal to every rank; they save, or end at once, as each signal asks."""
        self.stopping = number
        for process in list(self.ranks):
            if process.poll() is None:
                process.send_signal(number)

    def available_ranks(self) -> int:
        """As many ranks as asked for, but one per GPU that still answers where there are GPUs."""
        # Empty: none may be used, which needs no asking.
        self.gpus = count_gpus() if os.environ.get("CUDA_VISIBLE_DEVICES") != "" else 0
        wanted = self.wanted_ranks or self.gpus or CPU_RANKS
        return min(wanted, self.gpus) if self.gpus else wanted

    def last_step(self) -> int | None:
        """The newest step in metrics.jsonl; None before the first."""
        try:
            lines = (self.directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return None
        for line in reversed(lines):
            try:
                return json.loads(line)["step"]
            except ValueError:  # a line cut off by the fault
                continue
        return None

    def pause(self, seconds: float) -> None:
        self.say(f"starting again in {seconds:g} s from the newest valid checkpoint")
        time.sleep(seconds)

    def say(self, message: str) -> None:
        with contextlib.suppress(OSError):  # a terminal that has been closed
            print(f"supervisor: {message}", file=sys.stderr, flush=True)


def count_gpus() -> int:
    """GPUs that answer, asked in a process of its own; raises RunError when it does not end."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=COUNT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()  # and not waited for: what a driver holds does not go
        raise RunError(
            f"the GPUs of this machine did not answer within {COUNT_SECONDS:g} s: one of them, or the driver, hangs. "
            "Look with nvidia-smi, leave it out by CUDA_VISIBLE_DEVICES or restart the machine, and start the same "
            "command again: it continues from the newest checkpoint."
        ) from None
    return int(output.strip() or 0) if process.returncode == 0 else 0


def modified(path: Path) -> int | None:
    """When a file was last touched, in nanoseconds; None without one."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def describe(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


if __name__ == "__main__":
    command.run(main)
