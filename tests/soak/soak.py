"""Rounds of a training under faults. A round is one run directory: `faults` strike at it, then it is finished, and what
came out is compared with a run of one rank that nothing happened to (invariants.py).

The supervisor of launch/local.sh drives real ranks; faults.py says what can happen to them.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests import pace, tiny
from tests.forks import Forked
from tests.soak.programs import supervise
from upscale.checkpoint import manifest
from upscale.checkpoint.lock import start_ticks
from upscale.distributed.world import World
from upscale.errors import STOPPED_EXIT_CODE

ENGINES = ["engine.name=fsdp", *(f"engine.zero_stage={stage}" for stage in (0, 1, 2, 3))]
HANG_SECONDS, GRACE_SECONDS = 15, 8
PATIENCE_SECONDS = 300
MOST_PATIENT = 6.0
EVALUATED_STEPS, MILESTONE_STEPS, BATCH = 5, 10, 12
DISK_BYTES = 64 << 20


def settings(directory: Path, hang_seconds: float) -> list[str]:
    """Smooth and gentle enough that rounding stays rounding over hundreds of steps; blocks wake after 20 and 40.

    With the paper's ReLU, one hidden activation within rounding of 0 changes a gradient by far more than rounding.
    """
    return tiny.overrides(
        run__dir=directory,
        model__block="llama",
        optimizer__learning_rate="1e-3",
        schedule__instances="10e6",
        schedule__halve_every=0,
        schedule__wake_every=240,
        checkpoint__every_steps=4,
        checkpoint__milestones=MILESTONE_STEPS * BATCH,
        evaluation__every=EVALUATED_STEPS * BATCH,
        evaluation__tasks="[aut]",
        evaluation__slices=8,
        engine__timeout_seconds=hang_seconds,
        engine__micro_batch=12,
    )


@dataclass
class Limits:
    """What a soak may use, and how long it may be silent."""

    most_ranks: int = 4
    engines: list[str] = field(default_factory=lambda: list(ENGINES))
    small_disk: bool = False
    hang_seconds: float = HANG_SECONDS
    grace_seconds: float = GRACE_SECONDS
    slower: float = 1.0

    @classmethod
    def on_this_machine(cls, most_ranks: int, engines: list[str], small_disk: bool) -> Limits:
        """With as much more time as it is slower than a free one, but no hang of many minutes."""
        slower = min(pace.measure(), MOST_PATIENT)
        return cls(most_ranks, engines, small_disk, HANG_SECONDS * slower, GRACE_SECONDS * slower, slower)


class Ground:
    """A folder for one run directory, its processes and what they leave; `small_disk` gives it a disk of its own."""

    def __init__(self, folder: Path, limits: Limits):
        self.folder, self.limits = folder, limits
        for name in ("rows", "temporary", "processes", "inject", "disk"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.disk, self.mounted = folder / "disk", False
        if limits.small_disk and not os.path.ismount(self.disk):
            words = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "soak", str(self.disk)]
            self.mounted = os.geteuid() == 0 and subprocess.run(words, capture_output=True).returncode == 0

    def launch(self, directory: Path, ranks: int, engine: str, *extra: str) -> Forked:
        words = ["--ranks", str(ranks), "--max-restarts", "100000", *settings(directory, self.limits.hang_seconds)]
        with open(self.folder / "output.txt", "a") as file:
            arguments = str(self.folder), str(self.folder / "rows"), [*words, engine, *extra]
            return Forked(supervise, *arguments, self.limits.grace_seconds, self.limits.slower, output=file.fileno())

    def output(self) -> str:
        return (self.folder / "output.txt").read_text(errors="replace")

    def alive(self) -> list[int]:
        """Processes that this ground's supervisors and ranks have left word of and that still run."""
        found = (path.name.split("-") for path in (self.folder / "processes").iterdir())
        return [int(pid) for pid, ticks in found if start_ticks(int(pid)) == int(ticks)]

    def clear(self, keep: bool = False) -> None:
        """End whatever is left, and take the disk away; with `keep` what is on it stays beside it."""
        for pid in self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if os.path.ismount(self.disk):
            if keep:
                shutil.copytree(self.disk, self.folder / "kept", symlinks=True)
            subprocess.run(["umount", "--lazy", str(self.disk)], check=True)


class Round(Ground):
    """One run directory under faults, `process` being its supervisor. AssertionError: something ended amiss."""

    def __init__(self, folder: Path, seed: str, limits: Limits):
        super().__init__(folder, limits)
        self.random = random.Random(seed)
        self.directory = self.disk / "run"
        self.happened: list[dict] = []
        self.shapes: list[tuple[int, str]] = []
        self.process: Forked | None = None
        self.damaged = self.refused_starts = self.killed_supervisors = 0
        self.loss_difference = 0.0

    def live(self, kinds: dict[str, Callable[[Round], None]], faults: int, tell: Callable[[dict], None]) -> int:
        """Let faults happen, each of `kinds` once before one comes again; then finish. Returns the number of steps."""
        self.start()
        left: list[str] = []
        while len(self.happened) < faults:
            left = left or self.random.sample(list(kinds), len(kinds))
            self.pass_time()
            kind = left.pop()
            record = {"index": len(self.happened) + 1, "kind": kind, "step": self.last_step(), "shape": self.shapes[-1]}
            kinds[kind](self)
            self.happened.append(record)
            tell(record)
            self.wait_for_steps(self.random.randint(0, 2))
        self.stop()
        steps = -(-(self.last_step() + 2) // EVALUATED_STEPS) * EVALUATED_STEPS
        self.start(f"run.steps={steps}")
        code = self.ends()
        assert code == 0, f"the last start ended with {code}"
        return steps

    def pass_time(self) -> None:
        """Until some step, or for a moment in which the ranks may still be starting."""
        if self.random.random() < 0.6:
            self.wait_for_steps(self.random.randint(1, 3))
        time.sleep(self.random.uniform(0, 1))

    # ---- starting and stopping

    def shape(self) -> tuple[int, str]:
        """Another number of ranks or another engine than before, where there are several."""
        shapes = [(ranks, engine) for ranks in range(1, self.limits.most_ranks + 1) for engine in self.limits.engines]
        return self.random.choice([shape for shape in shapes if shape not in self.shapes[-1:]] or shapes)

    def start(self, *extra: str) -> None:
        self.shapes.append(self.shape())
        self.process = self.launch(self.directory, *self.shapes[-1], *extra)

    def stop(self, number: int = signal.SIGTERM, process: int | None = None) -> None:
        """By one signal, to the supervisor or a rank; all ranks save, and the exit code says so."""
        self.wait_for_ranks()
        with contextlib.suppress(ProcessLookupError):
            os.kill(process or self.process.pid, number)
        code = self.ends()
        assert code == STOPPED_EXIT_CODE, f"a stop ended with {code}"

    def kill_everything(self) -> None:
        """As a power failure: nobody says anything to anybody."""
        self.killed_supervisors += 1
        for pid in [self.process.pid, *self.ranks()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.ends()
        for pid in self.alive():  # ranks that were being started
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.wait(lambda: not self.alive(), "all processes are gone", running=False)

    def settle(self, codes: Iterable[int]) -> None:
        """After a fault that may have ended the supervisor: if it has, it must be by one of the codes; start again."""
        if (code := self.process.poll()) is not None:
            assert code in codes, f"ended with {code}"
            self.kill_everything()
            self.start()

    # ---- looking

    def ranks(self) -> list[int]:
        """Process ids of the supervisor's ranks that run now, in rank order."""
        try:
            text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        except OSError:
            return []
        return sorted(int(pid) for pid in text.split() if start_ticks(int(pid)))

    def last_step(self) -> int:
        path = self.directory / "metrics.jsonl"
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        return json.loads(lines[-2])["step"] if len(lines) > 1 else 0

    def valid_steps(self) -> list[int]:
        folder, found = self.directory / "checkpoints", []
        for step in manifest.steps(folder):
            with contextlib.suppress(manifest.InvalidCheckpoint):
                manifest.verify(manifest.step_folder(folder, step), World.single())
                found.append(step)
        return found

    def wait(self, condition: Callable[[], object], what: str, running: bool = True) -> None:
        deadline = pace.Deadline(PATIENCE_SECONDS)
        while not condition():
            code = self.process.poll()
            assert not running or code is None, f"ended with {code} before {what}"
            assert not deadline.passed(), f"waited {PATIENCE_SECONDS} s until {what}"
            time.sleep(0.02)

    def wait_for_steps(self, count: int) -> None:
        goal = self.last_step() + count
        self.wait(lambda: self.last_step() >= goal, f"step {goal}")

    def wait_for_ranks(self) -> None:
        """Until as many as there should be have their own handlers for signals."""
        self.wait(lambda: len(self.ranks()) == self.shapes[-1][0], "all ranks have started")

    def wait_for_others(self, ranks: list[int]) -> None:
        self.wait(lambda: not set(ranks) & set(self.ranks()), "the lost rank's peers end")

    def ends(self) -> int:
        self.wait(lambda: self.process.poll() is not None, "the end", running=False)
        return self.process.poll()


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
