"""Run a function on several real gloo ranks, with a hard time-out: a hung collective fails the test, not the suite."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from tests.forks import Forked, reference, resolve
from tests.pace import Deadline


def free_port() -> int:
    """A port that nothing listens on, below those that the kernel hands out, and of this worker of pytest-xdist only.

    Between 20000 and 29999, where it is also the port that a job of Slurm with this number would use.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = 20000 + 500 * (worker % 20) + random.randrange(500)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def run_ranks(function: Callable, size: int, *arguments, timeout_seconds: float = 180) -> list:
    """`function(world, *arguments)` on `size` ranks; what each rank returned, in rank order.

    The function must be importable (module level). Raises AssertionError with the traceback of the ranks that failed.
    """
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "output", "wb") as output:
        place = size, free_port(), folder
        processes = [
            Forked(_rank_main, reference(function), rank, *place, arguments, output=output.fileno(), server=rank % 2)
            for rank in range(size)
        ]
        deadline = Deadline(timeout_seconds)
        late = [rank for rank, process in enumerate(processes) if not _ends(process, deadline)]
        for process in processes:
            process.kill()
        print((Path(folder) / "output").read_text(errors="replace"), end="")
        failures = [path.read_text() for path in sorted(Path(folder).glob("*.error"))]
        assert not failures, "\n".join(failures)
        assert not late, f"ranks {late} of {size} did not end within {timeout_seconds} s"
        codes = [process.wait() for process in processes]
        assert codes == [0] * size, f"exit codes {codes}"
        return [pickle.loads((Path(folder) / f"{rank}.result").read_bytes()) for rank in range(size)]


def _ends(process: Forked, deadline: Deadline) -> bool:
    while not deadline.passed():
        try:
            process.wait(deadline.left())
            return True
        except subprocess.TimeoutExpired:
            continue
    return process.poll() is not None


def _rank_main(function: tuple[str, str], rank: int, size: int, port: int, folder: str, arguments: tuple) -> None:
    from upscale.distributed.world import World

    torch.set_num_threads(1)
    environment = {
        "RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_RANK": rank,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
    }
    try:
        world = World.join({name: str(value) for name, value in {**environment, "MASTER_PORT": port}.items()})
        result = resolve(*function)(world, *arguments)
        (Path(folder) / f"{rank}.result").write_bytes(pickle.dumps(result))
        world.barrier()
    except BaseException:
        (Path(folder) / f"{rank}.error").write_text(f"rank {rank}:\n{traceback.format_exc()}")
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)
