"""A training that is killed, stopped, signalled, resized, switched and damaged at random; what comes out of it.

`Soak.run` drives the supervisor that launch/local.sh starts, over real ranks, and then compares with a run of one rank
that nothing happened to: the rows of every step, the loss of every step, and whatever is left behind.
"""

from __future__ import annotations

import collections
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests import pace, tiny
from tests.test_train import ROOT, environment, metrics
from upscale.checkpoint import manifest
from upscale.distributed.world import World
from upscale.errors import STOPPED_EXIT_CODE

ENGINES = ["engine.name=fsdp", *(f"engine.zero_stage={stage}" for stage in (0, 1, 2, 3))]
HANG_SECONDS = 15
PATIENCE_SECONDS = 240
TOLERANCE = 1e-4
"""Relative, on a loss. Two runs of hundreds of steps without any fault differ as much on other numbers of ranks."""
WEIGHTS = {"kill": 8, "kill while starting": 4, "hang": 2, "stop": 10, "flip": 4, "truncate": 3, "remove": 3}


def settings(folder: Path, hang_seconds: float) -> list[str]:
    """Gentle enough that rounding stays rounding over hundreds of steps; blocks wake after 40 and 80."""
    return tiny.overrides(
        run__dir=folder,
        optimizer__learning_rate="1e-3",
        schedule__instances="10e6",
        schedule__halve_every=0,
        schedule__wake_every=480,
        checkpoint__every_steps=4,
        engine__timeout_seconds=hang_seconds,
        engine__micro_batch=12,
    )


class Soak:
    """One run of `faults` faults, or one more, or of `minutes`, on at most `most_ranks` ranks, all below `folder`."""

    def __init__(self, folder: Path, seed: int, faults: int, minutes: float, most_ranks: int, engines: list[str]):
        self.folder, self.faults, self.most_ranks, self.engines = folder, faults, most_ranks, engines
        self.random = random.Random(seed)
        self.deadline = time.monotonic() + 60 * minutes
        self.hang_seconds = HANG_SECONDS * pace.measure()
        self.run_directory = folder / "run"
        self.happened: list[str] = []
        self.shapes: list[tuple[int, str]] = []
        self.process: subprocess.Popen | None = None
        self.damaged = self.furthest = 0
        for name in ("rows", "rows-alone", "rows-control", "temporary"):
            (folder / name).mkdir(parents=True)

    def run(self, say: Callable[[str], None] = print) -> dict:
        """The summary; raises AssertionError where something did not end as it must, and then ends it."""
        try:
            return self.live_through_faults(say)
        except BaseException:
            for pid in self.ranks():
                os.kill(pid, signal.SIGKILL)
            self.process.kill()
            raise

    def live_through_faults(self, say: Callable[[str], None]) -> dict:
        begin = time.monotonic()
        self.start()
        while len(self.happened) < self.faults - 1 and time.monotonic() < self.deadline:
            self.wait_for_steps(self.random.randint(1, 4))
            time.sleep(self.random.uniform(0, 0.3))
            kind = self.choose()
            say(f"{time.monotonic() - begin:5.0f} s  step {self.last_step():>5}  {kind}")
            self.strike(kind)
        self.wait_for_steps(3)
        self.stop(signal.SIGTERM)  # the last fault, because only a new start can be given an end
        self.happened.append("stop")
        steps = self.last_step() + 3
        self.start(f"run.steps={steps}")
        assert self.ends(self.process) == 0, self.output()
        say(f"{time.monotonic() - begin:5.0f} s  step {steps:>5}  finished")
        seconds = time.monotonic() - begin
        self.alone("alone", 1, steps)
        return {"seconds": round(seconds), **self.summary(steps)}

    def choose(self) -> str:
        """Those that have not happened yet come first, so that a short run sees different ones."""
        new = [kind for kind in WEIGHTS if kind not in self.happened]
        kinds = new or list(WEIGHTS)
        impossible = set()
        if len(self.valid_steps()) < 2:
            impossible |= {"flip", "truncate", "remove"}
        if len(self.ranks()) < 2:
            impossible.add("hang")  # it takes another rank to notice
        kinds = [kind for kind in kinds if kind not in impossible] or ["kill"]
        return self.random.choices(kinds, [WEIGHTS[kind] for kind in kinds])[0]

    def strike(self, kind: str) -> None:
        """One fault, or two: a rank is killed before a checkpoint is damaged or its successors while they start."""
        ranks = self.ranks()
        if kind == "stop":
            self.happened.append("stop")
            number = self.random.choice([signal.SIGTERM, signal.SIGUSR1])
            self.stop(number, self.random.choice([self.process.pid, *ranks]))
            self.start()
        else:
            self.happened.append("hang" if kind == "hang" else "kill")
            os.kill(self.random.choice(ranks), signal.SIGSTOP if kind == "hang" else signal.SIGKILL)
            self.wait(lambda: not set(ranks) & set(self.ranks()), "the lost rank's peers end")
        if kind == "kill while starting":
            self.wait(self.ranks, "the ranks start again")
            time.sleep(self.random.uniform(0, 3))
            os.kill(self.random.choice(self.ranks()), signal.SIGKILL)
            self.happened.append(kind)
        elif kind in ("flip", "truncate", "remove"):
            self.damage(kind)  # before the next ranks have imported what reads it
            self.happened.append(kind)

    def damage(self, kind: str) -> None:
        """To a file of the newest step; another one is valid."""
        folder = manifest.step_folder(self.run_directory / "checkpoints", self.valid_steps()[-1])
        path = self.random.choice(sorted(folder.iterdir()))
        content = bytearray(path.read_bytes())
        if kind == "remove":
            path.unlink()
        elif kind == "truncate":
            path.write_bytes(content[: self.random.randrange(len(content))])
        else:
            content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
            path.write_bytes(content)
        self.damaged += 1

    def start(self, *extra: str) -> None:
        """Another number of ranks and another engine or stage each time, where there are several."""
        before = self.shapes[-1] if self.shapes else None
        shapes = [(ranks, engine) for ranks in range(1, self.most_ranks + 1) for engine in self.engines]
        shape = self.random.choice([other for other in shapes if other != before])
        self.shapes.append(shape)
        arguments = [
            "--ranks",
            str(shape[0]),
            "--max-restarts",
            "1000",
            *settings(self.run_directory, self.hang_seconds),
            shape[1],
        ]
        self.process = self.launch("rows", "-m", "tests.soak.supervise", *arguments, *extra)

    def launch(self, rows: str, *arguments: str, **variables: str) -> subprocess.Popen:
        places = {"SOAK_ROWS": str(self.folder / rows), "TMPDIR": str(self.folder / "temporary")}
        places["TORCHINDUCTOR_CACHE_DIR"] = str(self.folder / "cache")  # kept by torch on purpose
        with open(self.folder / "output.txt", "a") as file:
            return subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=environment(**places, **variables),
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def stop(self, number: int, process: int | None = None) -> None:
        """By a signal to the supervisor or to one rank; all ranks save and exit with the code for it."""
        os.kill(process or self.process.pid, number)
        assert self.ends(self.process) == STOPPED_EXIT_CODE, self.output()

    def alone(self, name: str, ranks: int, steps: int) -> None:
        """The same steps without any fault."""
        arguments = [*settings(self.folder / name, self.hang_seconds), f"run.steps={steps}", ENGINES[0]]
        process = self.launch(
            f"rows-{name}", "-m", "tests.soak.supervise", "--ranks", str(ranks), "--max-restarts", "0", *arguments
        )
        assert self.ends(process, 4 * PATIENCE_SECONDS) == 0, self.output()

    def ends(self, process: subprocess.Popen, seconds: float = PATIENCE_SECONDS) -> int:
        """The exit code; AssertionError when there is none in time."""
        deadline = pace.Deadline(seconds)
        while (code := process.poll()) is None:
            assert not deadline.passed(), f"waited {seconds} s for the end: {self.output()}"
            time.sleep(0.05)
        return code

    def wait(self, condition: Callable[[], object], what: str) -> None:
        deadline = pace.Deadline(PATIENCE_SECONDS)
        while not condition():
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.output()}"
            assert not deadline.passed(), f"waited {PATIENCE_SECONDS} s until {what}: {self.output()}"
            time.sleep(0.05)

    def wait_for_steps(self, count: int) -> None:
        """`count` steps further than the run has ever been."""
        goal = max(self.last_step(), self.furthest) + count
        self.wait(lambda: self.last_step() >= goal, f"step {goal}")
        self.furthest = self.last_step()

    def last_step(self) -> int:
        path = self.run_directory / "metrics.jsonl"
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        return int(lines[-2].split(b'"step":')[1].split(b",")[0]) if len(lines) > 1 else 0

    def ranks(self) -> list[int]:
        """Process ids of the ranks that run now."""
        if self.process.poll() is not None:
            return []
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in text.split() if b"rank.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def valid_steps(self) -> list[int]:
        folder, found = self.run_directory / "checkpoints", []
        for step in manifest.steps(folder):
            try:
                manifest.verify(manifest.step_folder(folder, step), World.single())
                found.append(step)
            except manifest.InvalidCheckpoint:
                continue
        return found

    def output(self) -> str:
        return (self.folder / "output.txt").read_text()

    def summary(self, steps: int) -> dict:
        rows, expected = self.rows("rows"), self.rows("rows-alone")
        everywhere = {(step, lane) for step in range(1, steps + 1) for lane in range(12)}
        here, there = metrics(self.run_directory), metrics(self.folder / "alone")
        log = (self.run_directory / "log.txt").read_text()
        return {
            "faults": len(self.happened),
            "kinds": dict(collections.Counter(self.happened)),
            "starts": len(self.shapes),
            "restarts": self.output().count("supervisor: starting again"),
            "worlds": sorted({ranks for ranks, _ in self.shapes}),
            "engines": sorted({engine for _, engine in self.shapes}),
            "damaged_checkpoints": self.damaged,
            "damaged_checkpoints_refused": log.count("cannot be used, trying the one before it"),
            "steps": steps,
            "every_step_logged_once": [record["step"] for record in here] == list(range(1, steps + 1)),
            "rows_compared": len(everywhere),
            "rows_equal": all(rows.get(key) == expected.get(key) != None for key in everywhere),  # noqa: E711
            "largest_relative_loss_difference": largest_difference(here, there),
            "tolerance": TOLERANCE,
            "processes_left": self.processes_left(),
            "ports_left": self.ports_left(),
            "files_left": self.files_left(),
        }

    def rows(self, name: str) -> dict[tuple[int, int], str]:
        """Digest by (step, lane); a lane draws one round a step. Where two draws of it differed: 'differs'."""
        found: dict[tuple[int, int], str] = {}
        for path in (self.folder / name).iterdir():
            for line in path.read_text().split("\n")[:-1]:  # a kill may cut the last one off
                step, lane, digest = line.split()
                key = int(step), int(lane)
                found[key] = digest if found.get(key, digest) == digest else "differs"
        return found

    def processes_left(self) -> list[str]:
        """Those whose environment names the folder, some seconds after the end."""
        for _ in range(50):
            found = []
            for path in Path("/proc").glob("[0-9]*/environ"):
                try:
                    if str(self.folder).encode() in path.read_bytes():
                        found.append((path.parent / "cmdline").read_text().replace("\0", " "))
                except OSError:
                    continue
            if not found:
                break
            time.sleep(0.1)
        return found

    def ports_left(self) -> list[int]:
        """Ports of any of the worlds that somebody still listens on."""
        used = {int(path.name.split("-")[0]) for path in self.folder.glob("rows*/*")}
        lines = [
            line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().split("\n")[1:]
        ]
        listening = {int(fields[1].rsplit(":")[-1], 16) for fields in lines if fields and fields[3] == "0A"}
        return sorted(used & listening)

    def files_left(self) -> list[str]:
        """Anything in the temporary folder, and anything half written in the run directory."""
        half = [path for path in self.run_directory.rglob("*") if path.name.startswith(".")]
        return [str(path.relative_to(self.folder)) for path in [*half, *(self.folder / "temporary").iterdir()]]


def largest_difference(here: list[dict], there: list[dict]) -> float:
    pairs = zip(here, there, strict=True)
    return max(abs(a["loss_bits_per_byte"] / b["loss_bits_per_byte"] - 1) for a, b in pairs)


def problems(summary: dict) -> list[str]:
    """What a soak must not show."""
    found = [f"{key}: {summary[key]}" for key in ("processes_left", "ports_left", "files_left") if summary[key]]
    found += [f"{key} is false" for key in ("every_step_logged_once", "rows_equal") if not summary[key]]
    if not summary["largest_relative_loss_difference"] <= summary["tolerance"]:
        found.append(f"a loss differs by {summary['largest_relative_loss_difference']:.2e}")
    if summary["damaged_checkpoints_refused"] < summary["damaged_checkpoints"]:
        found.append("a damaged checkpoint was not refused")
    return found
