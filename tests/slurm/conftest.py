"""One real Slurm for all tests of this folder, and a clone whose scripts are submitted to it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import pace
from tests.slurm.cluster import USER, Cluster, wait_until, why_not

ROOT = Path(__file__).parents[2]
PACKAGES = f"{ROOT}:{sysconfig.get_paths()['purelib']}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slurm)


class Running:
    """The cluster of all tests, or its successor when the machine's pace has changed by more than time-outs bear."""

    def __init__(self, life: contextlib.ExitStack):
        self.life = life
        self.cluster: Cluster | None = None

    def ready(self) -> Cluster:
        now = pace.measure()
        if self.cluster and self.cluster.pace / 3 <= now <= self.cluster.pace * 2:
            self.cluster.heal()
            return self.cluster
        self.life.close()
        # A short path: munge's socket must fit into a socket address.
        folder = self.life.enter_context(tempfile.TemporaryDirectory(prefix="slurm-"))
        self.cluster = self.life.enter_context(Cluster(Path(folder), now))
        return self.cluster


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[Running]:
    if reason := why_not():
        pytest.skip(reason)
    with contextlib.ExitStack() as life:
        yield Running(life)


@pytest.fixture
def cluster(running_cluster: Running) -> Cluster:
    return running_cluster.ready()


class Clone:
    """A copy of what a user's clone holds for Slurm, with a site.env, whose scripts are submitted unchanged."""

    def __init__(self, folder: Path, cluster: Cluster, standin: bool, user: str | None = None, python: str = ""):
        self.folder, self.cluster, self.user = folder, cluster, user
        for name in ("slurm", "configs"):
            shutil.copytree(ROOT / name, folder / name)
        binaries = folder / "bin"
        binaries.mkdir()
        if python:
            (binaries / "python").symlink_to(python)
        if standin or python:
            program = binaries / "upscale"
            module = "tests.slurm.standin" if standin else "upscale.cli"
            program.write_text(f'#!/bin/sh\nexec python -m {module} "$@"\n')
            program.chmod(0o755)
        self.environment = {
            "PATH": f"{binaries}:{Path(sys.executable).parent}:{cluster.environment['PATH']}",
            "PYTHONPATH": PACKAGES if python else str(ROOT),
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "SBATCH_GRES": f"gpu:{cluster.gpus}" if cluster.gpus else "none",
            "LAUNCH_PROBE_SECONDS": str(cluster.seconds(10)),
            "LAUNCH_WATCH_SECONDS": "2",
            "LAUNCH_QUIET_SECONDS": str(cluster.seconds(6 if standin else 15)),
            "LAUNCH_FOLLOWUP_SECONDS": "0.5",
            "STANDIN_PEER_SECONDS": str(cluster.seconds(8)),
            "STANDIN_MEETING_SECONDS": str(cluster.seconds(60)),
        }
        if user:
            self.environment |= {"HOME": os.path.expanduser(f"~{user}"), "USER": user, "LOGNAME": user}
            subprocess.run(["chown", "--recursive", f"{user}:", folder], check=True)

    def submit(self, *arguments: object, cwd: str = ".", **environment: str) -> str:
        """`sbatch ARGUMENTS` in a folder of the clone; the job's id."""
        return self.command("sbatch", "--parsable", *arguments, cwd=cwd, **environment).strip()

    def command(self, *words: object, cwd: str = ".", check: bool = True, **environment: str) -> str:
        extra = {**self.environment, **environment}
        if self.user:
            words = ("setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups", *words)
        return self.cluster.inside(*map(str, words), check=check, cwd=self.folder / cwd, environment=extra)

    def log(self, job: str) -> str:
        """The job's log."""
        return "\n".join(path.read_text() for path in self.folder.rglob(f"*-{job}.log"))

    def rows(self, run: str, name: str = "metrics.jsonl") -> list[dict]:
        path = self.folder / "runs" / run / name
        if not path.exists():
            return []
        text = path.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def events(self, run: str) -> list[str]:
        return [record["event"] for record in self.rows(run, "slurm/events.jsonl")]

    def reaches(self, run: str, step: int, job: str) -> None:
        """Wait until the run has logged a step."""

        def reached() -> bool:
            state = self.cluster.state(job)
            assert state in ("PENDING", "RUNNING", "COMPLETING"), f"{state}\n{self.log(job)}"
            return any(row["step"] >= step for row in self.rows(run))

        wait_until(reached, lambda: f"step {step}:\n{self.log(job)}")

    def finish(self, job: str, expect: str = "COMPLETED") -> dict[str, str]:
        """Wait for the job's end; what Slurm says about it."""
        found = self.cluster.wait(job)
        assert found["JobState"] == expect, f"{found}\n{self.log(job)}\n{self.rank_logs()}"
        return found

    def rank_logs(self) -> str:
        paths = sorted(self.folder.glob("runs/*/slurm/*/*.log"))
        return "\n".join(f"-- {path}\n{path.read_text()[-1500:]}" for path in paths)

    def worlds(self, run: str) -> list[int]:
        """World sizes in the order in which they trained, repetitions left out."""
        sizes = [row["world_size"] for row in self.rows(run)]
        return [size for index, size in enumerate(sizes) if index == 0 or sizes[index - 1] != size]


@pytest.fixture
def clone(tmp_path: Path, cluster: Cluster) -> Clone:
    """Scripts that start the stand-in rank."""
    return Clone(tmp_path, cluster, standin=True)


@pytest.fixture(scope="session")
def users_python(running_cluster: Running) -> str:
    """A Python of our version that somebody without rights reaches with our packages: ours, or the system's."""
    # Through a shell, as in a job: the program that setpriv itself starts is still found with root's rights.
    words = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    words += ["sh", "-c", '"$0" -c "import torch, upscale"']
    system = shutil.which(f"python{sys.version_info.major}.{sys.version_info.minor}", path="/usr/local/bin:/usr/bin")
    for python in filter(None, (sys.executable, system)):
        if not subprocess.run([*words, python], env={"PYTHONPATH": PACKAGES}, capture_output=True, cwd="/").returncode:
            return python
    pytest.skip(f"{USER} reaches no Python with torch and {ROOT}: neither {sys.executable} nor the system's")


@pytest.fixture
def users_folder() -> Iterator[Path]:
    """An empty folder that somebody without rights may reach."""
    with tempfile.TemporaryDirectory(prefix="clone-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def users_clone(users_python: str, users_folder: Path, cluster: Cluster) -> Clone:
    """Scripts that start the stand-in rank, submitted by somebody without rights."""
    return Clone(users_folder, cluster, standin=True, user=USER, python=users_python)


@pytest.fixture
def users_real_clone(users_python: str, users_folder: Path, cluster: Cluster) -> Clone:
    return Clone(users_folder, cluster, standin=False, user=USER, python=users_python)


@pytest.fixture
def real_clone(tmp_path: Path, cluster: Cluster) -> Clone:
    """Scripts that start the trainer."""
    return Clone(tmp_path, cluster, standin=False)


def overrides(run: str, steps: int, **changes: object) -> list[str]:
    """A run of the stand-in: one instance a step."""
    shape = "schedule.batch.start=1 schedule.batch.end=1 schedule.batch.from=0 schedule.batch.to=0".split()
    extra = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    return [f"run.name={run}", f"schedule.instances={steps}", *shape, "checkpoint.every_steps=5", *extra]


def started_nodes(text: str) -> list[str]:
    """The node lists of a job log's steps, in order."""
    return re.findall(r"starting \d+ ranks, \d+ on each of (\S+);", text)
