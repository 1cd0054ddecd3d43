"""Exclusive use of a run directory: at most one training writes in it, on one machine or on many.

RUNDIR/lock holds one file a turn, named by its number. The highest number holds the directory, and its file says who
that is. A turn is taken by creating the next number, which a file system grants to one process only, NFS included.
Nothing is compared between clocks: a holder touches its file every few seconds, and who waits looks, by its own clock,
whether the file changes. A holder looks before it appends or renames whether its number is still the highest, so that
one that was stopped for long, or cut off, writes nothing more.

A file that others add to while a training runs is changed under a lock of its own, of the same kind, which is held for
moments and waited for: see `alone`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upscale.errors import UserError
from upscale.files import write_atomically

FOLDER = "lock"
HEARTBEAT_SECONDS = 5.0
SILENCE_SECONDS = 60.0
"""A holder elsewhere that has not touched its file for so long is taken for dead."""
LOOK_SECONDS = 1.0
SQUEUE_SECONDS = 30.0
SIGKILL_BIT = 1 << 8
UNFINISHED = "PENDING,CONFIGURING,RUNNING,SUSPENDED,COMPLETING"


@dataclass(frozen=True)
class Holder:
    """Who took a turn. Every field has a default, which stands for what a damaged file does not say."""

    host: str = "an unknown host"
    process: int = 0
    started: int = 0
    """Clock ticks from the boot of its machine to its start: a number that is used again has another."""
    place: str = ""
    """Boot and process namespace: where the number of the process means something."""
    folder: int = 0
    """Number (inode) of the lock's folder: in a copy of a run directory it is another."""
    since: str = ""
    cluster: str = ""
    job: str = ""
    restart: int = 0
    owned_by_job: bool = False
    """A job's script took the directory for as long as the job lives, also between its steps and its allocations."""
    free: bool = False
    """It has ended its turn by itself."""

    @classmethod
    def of_this_process(cls, environment: Mapping[str, str]) -> Holder:
        return cls(
            host=socket.gethostname(),
            process=os.getpid(),
            started=start_ticks(os.getpid()),
            place=_place(),
            since=time.strftime("%Y-%m-%d %H:%M:%S"),
            cluster=environment.get("SLURM_CLUSTER_NAME", ""),
            job=environment.get("SLURM_JOB_ID", ""),
            restart=int(environment.get("SLURM_RESTART_COUNT") or 0),
        )

    @classmethod
    def read(cls, text: str) -> Holder:
        """What a lock file says; of a file that is empty or damaged the defaults."""
        try:
            content = json.loads(text)
            known = {field.name: type(field.default) for field in dataclasses.fields(cls)}
            said: dict[str, Any] = {key: value for key, value in content.items() if type(value) is known.get(key)}
            return cls(**said)
        except (ValueError, AttributeError):
            return cls()

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"process {self.process or 'unknown'} on {self.host}{job}" + (f", since {self.since}" * bool(self.since))


def start_ticks(process: int, proc: Path = Path("/proc")) -> int:
    """When a process began, in clock ticks since boot; 0 where there is none, or none that will run on."""
    try:
        fields = (proc / str(process) / "stat").read_text().rpartition(")")[2].split()
        status = (proc / str(process) / "status").read_text()
    except OSError:
        return 0
    pending = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigPnd:", "ShdPnd:"))]
    # A zombie, or killed and held by a driver: it never runs a line of ours again.
    gone = fields[0] in "ZXx" or any(number & SIGKILL_BIT for number in pending)
    return 0 if gone else int(fields[19])


def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def job_is_over(holder: Holder, own: Holder) -> bool | None:
    """Whether the holder's Slurm job has ended for good; None where Slurm cannot be asked or does not say."""
    if not holder.job or not shutil.which("squeue") or (own.cluster and own.cluster != holder.cluster):
        return None
    words = ["squeue", "--noheader", f"--jobs={holder.job}", f"--states={UNFINISHED}", "--format=%T"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SQUEUE_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode and "Invalid job id" not in done.stderr:
        return None
    if done.returncode == 0 and done.stdout.strip():
        return False
    return True if own.cluster else None  # from outside a job it may be another cluster that was asked


def is_over(holder: Holder, own: Holder) -> bool | None:
    """Whether a holder will write no more; None where only its silence can tell. UserError when its job lives on."""
    if holder.folder != own.folder and not holder.free:
        return None  # a copy of a run directory, most likely; some file systems number anew, so it is not certain
    if holder.free and not holder.owned_by_job:
        return True
    same_job = bool(holder.job) and (holder.job, holder.cluster) == (own.job, own.cluster)
    over = None if same_job else job_is_over(holder, own)
    if holder.owned_by_job and over is False:
        raise UserError(
            f"belongs to job {holder.job}, which has not ended. Cancel it (scancel {holder.job}), or choose another "
            "run.name or run.dir."
        )
    if holder.free or over or (same_job and holder.restart < own.restart):
        return True
    if holder.place and holder.place == own.place:
        found = start_ticks(holder.process)
        return found != holder.started or holder.process == own.process
    return None


class Lock:
    """A turn in a run directory: `check` before each write, `release` at the end. `held` begins it."""

    def __init__(self, folder: Path, number: int, holder: Holder):
        self.folder, self.number, self.holder = folder, number, holder
        self.path = folder / str(number)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show_life, name="lock", daemon=True)
        self._thread.start()

    def _show_life(self) -> None:
        while not self._over.wait(HEARTBEAT_SECONDS):
            try:
                os.utime(self.path)
            except FileNotFoundError:  # taken over, which `check` tells
                return
            except OSError:  # a server that is away for a while
                continue

    def check(self) -> None:
        """Raises UserError, naming the other, when somebody has taken the directory over, or it is gone."""
        try:
            newest = _newest(self.folder)
        except FileNotFoundError:
            raise UserError(f"run directory {self.folder.parent} has been moved or removed under this run") from None
        if newest != self.number:
            other, _ = _look(self.folder, newest)
            raise UserError(
                f"run directory {self.folder.parent} was taken over by {other}: this process, {os.getpid()} on "
                f"{self.holder.host}, had shown no life for {SILENCE_SECONDS:g} s. It writes nothing more."
            )

    def release(self) -> None:
        """End the turn, so that the next one need not ask whether this process lives."""
        self._over.set()
        with contextlib.suppress(OSError):  # a disk that is full: then its end tells it
            if _newest(self.folder) == self.number:
                content = dataclasses.asdict(dataclasses.replace(self.holder, free=True))
                write_atomically(self.path, json.dumps(content).encode())


class Candidate:
    """One process that wants the next turn: call `look` until it gives the lock.

    A `brief` one waits for whoever has a turn, where others are refused, and for `SILENCE_SECONDS` at most.
    """

    def __init__(
        self,
        directory: Path,
        environment: Mapping[str, str] = os.environ,
        for_job: bool = False,
        folder: str = FOLDER,
        brief: bool = False,
    ):
        self.folder = directory / folder
        self.own = Holder.of_this_process(environment)
        self.for_job = for_job and bool(self.own.job)
        self.brief = brief
        self.seen: tuple[int, int] | None = None
        self.since = 0.0

    def look(self) -> Lock | str:
        """The lock, or what is being waited for. Raises UserError when somebody else is at work; OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.own = dataclasses.replace(self.own, folder=self.folder.stat().st_ino)
        number = _newest(self.folder)
        if number == 0:
            return self._take(1, Holder())
        try:
            holder, touched = _look(self.folder, number)
        except FileNotFoundError:  # somebody has just gone further
            return "another start"
        directory = self.folder.parent
        try:
            over = is_over(holder, self.own)
        except UserError as error:
            raise UserError(f"run directory {directory} {error}") from None
        waited = 0.0
        if over is None or (self.brief and not over):
            if self.seen is None or self.seen[0] != number:
                self.seen, self.since = (number, touched), time.monotonic()
            over = None if self.brief or self.seen[1] == touched else False
            waited = time.monotonic() - self.since
        if over is False:
            raise UserError(
                f"run directory {directory} is in use by {holder}. Only one training at a time may write in it: wait "
                f"for that one or end it (kill {holder.process} on {holder.host}), or choose another run.name or "
                "run.dir."
            )
        if over or waited >= SILENCE_SECONDS:
            return self._take(number + 1, holder)
        return f"{holder}, which is not known to have ended; its silence must last {SILENCE_SECONDS:g} s"

    def _take(self, number: int, before: Holder) -> Lock | str:
        path = self.folder / str(number)
        kept = before.owned_by_job and (before.job, before.cluster) == (self.own.job, self.own.cluster)
        holder = dataclasses.replace(self.own, owned_by_job=self.for_job or kept)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return "another start"
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(json.dumps(dataclasses.asdict(holder)))
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            path.unlink(missing_ok=True)
            raise
        if _newest(self.folder) != number:  # it was decided long ago, and others have been here since
            path.unlink(missing_ok=True)
            return "another start"
        for other in self.folder.iterdir():
            if not other.name.isdigit() or int(other.name) < number:
                other.unlink(missing_ok=True)
        return Lock(self.folder, number, holder)


def _newest(folder: Path) -> int:
    """The highest number; a listing, which asks NFS anew where a look at one name may be answered from memory."""
    return max((int(name) for name in os.listdir(folder) if name.isdigit()), default=0)


def _look(folder: Path, number: int) -> tuple[Holder, int]:
    """Who took a turn, and when its file was last touched, in nanoseconds of its file server's clock."""
    with open(folder / str(number), encoding="utf-8", errors="replace") as file:
        return Holder.read(file.read()), os.fstat(file.fileno()).st_mtime_ns


def claim(directory: Path, environment: Mapping[str, str] = os.environ) -> None:
    """Keep a run directory for this Slurm job until it has ended; its ranks take their turns in it.

    Raises UserError when it belongs to another job or is in use.
    """
    candidate = Candidate(directory, environment, for_job=True)
    while isinstance(found := candidate.look(), str):
        time.sleep(LOOK_SECONDS)
    found.release()


@contextlib.contextmanager
def alone(directory: Path, name: str) -> Iterator[None]:
    """The block in which nobody else changes the file `name` of a run directory, as long as all do it in such a block.

    It is for moments. Who is in one is waited for; one that was stopped in it, for `SILENCE_SECONDS`. Raises OSError.
    """
    candidate = Candidate(directory, folder=f"{name}.lock", brief=True)
    while isinstance(found := candidate.look(), str):
        time.sleep(LOOK_SECONDS)
    try:
        yield
    finally:
        found.release()
