"""Limits: what a process may open, lock and share, and how many cores a rank has."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

from upscale.doctor.base import Check, Record, Session
from upscale.machine import cores

FILES, FILES_PER_RANK = 256, 8
"""Files that a rank needs for itself, and for each rank of its world: a socket in each of its groups."""
SHARED_BYTES_PER_GPU = 64 << 20
"""Of /dev/shm: NCCL's buffers between the GPUs of a node. Containers often have 64 MiB in all."""
SHARED_MEMORY, INFINIBAND = Path("/dev/shm"), Path("/sys/class/infiniband")


class Limits(Check):
    kind = "limits"

    def measure(self, session: Session) -> list[Record]:
        found = [
            self._open_files(session),
            self.record(session, "cores of a rank", float(cores.of_this_rank()), "cores"),
        ]
        if session.leads_its_node and SHARED_MEMORY.is_dir():
            found.append(self._shared_memory(session))
        if session.device.type == "cuda" and INFINIBAND.is_dir() and any(INFINIBAND.iterdir()):
            found.append(self._locked_memory(session))
        return found

    def _open_files(self, session: Session) -> Record:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = FILES + FILES_PER_RANK * session.world.size
        if soft == resource.RLIM_INFINITY:
            return self.record(session, "open files", "unlimited")
        problem = None
        if soft < needed:
            how = f"ulimit -n {needed}" if hard == resource.RLIM_INFINITY or hard >= needed else "ask the site"
            problem = f"{session.world.size} ranks need {needed} a process. Raise the limit before the start: {how}"
        return self.record(session, "open files", float(soft), "files", problem)

    def _shared_memory(self, session: Session) -> Record:
        free = shutil.disk_usage(SHARED_MEMORY).free
        ranks = len(session.ranks_of_nodes[session.node])
        needed = SHARED_BYTES_PER_GPU * ranks if session.device.type == "cuda" and ranks > 1 else 0
        problem = None
        if free < needed:
            problem = (
                f"NCCL wants {needed >> 20} MiB for {ranks} GPUs. Give the container more (docker run --shm-size, "
                "apptainer has the node's), or empty it"
            )
        return self.record(session, "free in /dev/shm", free / 2**30, "GiB", problem)

    def _locked_memory(self, session: Session) -> Record:
        soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        if soft == resource.RLIM_INFINITY:
            return self.record(session, "locked memory", "unlimited")
        problem = "InfiniBand locks the memory that it reads. Ask the site for `ulimit -l unlimited` in jobs"
        return self.record(session, "locked memory", soft / 2**20, "MiB", problem)
