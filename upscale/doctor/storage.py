"""Storage: whether all ranks see one run directory, how fast each node writes and reads there, and the space left."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from upscale.config import Config
from upscale.doctor.base import PROBLEM, Check, Record, Session, flag_slow
from upscale.planning import memory, parameters

WRITTEN_BYTES = {"cuda": 256 << 20, "cpu": 32 << 20}
CHUNK_BYTES = 4 << 20
SECONDS_TO_APPEAR = 10.0
"""How late a network file system may show what another node has written."""
WRITE, READ = "write speed", "read speed"
SHARED = "sees what the others write"
SLOW = (
    "Look at the mount (mount, df) and the network of this node, or put run.dir on a faster file system: all ranks "
    "write a checkpoint at once"
)


class Storage(Check):
    kind = "storage"

    def measure(self, session: Session) -> list[Record]:
        directory, world = Path(session.config.run.dir), session.world
        made, failure = _make(directory) if world.is_main else ([], None)
        token, failure = world.broadcast_object((uuid.uuid4().hex, failure))
        if failure:
            problem = f"{failure}. Choose a folder that all nodes may write to: run.dir=FOLDER"
            return [self.record(session, "run directory", str(directory), problem=problem)] if world.is_main else []
        folder = directory / f".doctor-{token}"
        if world.is_main:
            folder.mkdir()
        world.barrier()
        try:
            found = self._seen(session, folder)
            if world.all_reduce_max(float(any(one.verdict == PROBLEM for one in found))) == 0:
                found += self._speeds(session, folder)
            return [*found, *(self._space(session, directory) if world.is_main else [])]
        finally:
            world.barrier()
            if world.is_main:
                shutil.rmtree(folder, ignore_errors=True)
                with contextlib.suppress(OSError):  # somebody else has begun to use it
                    for path in made:
                        path.rmdir()

    def judge(self, records: Sequence[Record], session: Session) -> list[Record]:
        return flag_slow(records, (WRITE, READ), session.device.type, SLOW)

    def _seen(self, session: Session, folder: Path) -> list[Record]:
        """Whether each rank sees a file that every other one has written."""
        world, failure = session.world, None
        try:
            (folder / f"rank-{world.rank}").write_text(session.node)
        except OSError as error:
            failure = f"this rank cannot write there: {error.strerror or error}"
        world.barrier()
        missing = [] if failure else _missing(folder, world.size)
        if missing:
            names = sorted({f"{session.nodes[rank]}" for rank in missing})
            failure = (
                f"it does not see what rank {', '.join(map(str, missing[:8]))} on {', '.join(names[:8])} has written"
            )
        problem = None
        if failure:
            problem = f"{failure}. run.dir must be one folder on a file system that all nodes share: set run.dir=FOLDER"
        return [self.record(session, SHARED, "no" if failure else "yes", problem=problem)]

    def _speeds(self, session: Session, folder: Path) -> list[Record]:
        """The first rank of each node, all nodes at once."""
        size = WRITTEN_BYTES[session.device.type]
        path = folder / f"data-{session.world.rank}"
        room = shutil.disk_usage(folder).free > 4 * size * len(session.ranks_of_nodes)
        if not session.world.broadcast_object(room):
            return []
        session.world.barrier()
        if not session.leads_its_node:
            return []
        try:
            rates = [size / _seconds(lambda: _write(path, size)) / 1e6, size / _seconds(lambda: _read(path)) / 1e6]
        except OSError as error:
            problem = f"{error.strerror or error}. Choose another folder: run.dir=FOLDER"
            return [self.record(session, WRITE, None, "MB/s", problem)]
        return [self.record(session, WRITE, rates[0], "MB/s"), self.record(session, READ, rates[1], "MB/s")]

    def _space(self, session: Session, directory: Path) -> list[Record]:
        free, needed = shutil.disk_usage(directory).free, needed_bytes(session.config)
        problem = None
        if free < needed:
            problem = (
                f"the checkpoints that this config keeps take {needed / 1e9:.1f} GB. Lower checkpoint.keep, keep fewer "
                "milestones (checkpoint.milestones), or set run.dir to a larger file system"
            )
        return [
            self.record(session, "free space", free / 1e9, "GB", problem),
            self.record(session, "checkpoints will take", needed / 1e9, "GB"),
        ]


def needed_bytes(config: Config) -> int:
    """What the run's checkpoints take at most: those kept, the one being written, and the milestones, in float32."""
    numbers = parameters(config.model) + memory.state_numbers(config)
    every, instances = config.checkpoint.milestones, config.schedule.instances
    milestones = instances // every if every else 0
    return 4 * numbers * (config.checkpoint.keep + 1 + milestones)


def _make(directory: Path) -> tuple[list[Path], str | None]:
    """What was made of a missing folder and its parents, innermost first, and why it could not be."""
    wanted = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK):
            return [], f"{directory} may not be written to"
    except OSError as error:
        return [], f"{directory} cannot be made: {error.strerror or error}"
    return wanted, None


def _missing(folder: Path, size: int) -> list[int]:
    """The ranks whose files do not appear."""
    deadline = time.monotonic() + SECONDS_TO_APPEAR
    while True:
        try:
            seen = set(os.listdir(folder))
        except OSError:
            seen = set()
        missing = [rank for rank in range(size) if f"rank-{rank}" not in seen]
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(0.1)


def _seconds(call: Callable[[], None]) -> float:
    begin = time.perf_counter()
    call()
    return max(time.perf_counter() - begin, 1e-9)


def _write(path: Path, size: int) -> None:
    chunk = os.urandom(CHUNK_BYTES)  # which no file system can compress
    with open(path, "wb") as file:
        for _ in range(size // CHUNK_BYTES):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> None:
    """From the disk, as far as the kernel drops what it has in memory."""
    with open(path, "rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while file.read(CHUNK_BYTES):
            pass
