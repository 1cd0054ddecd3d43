"""What NCCL was doing when a GPU run hung: torch's flight recorder, on by default, with its dumps in the run directory.

Each rank keeps its last collectives in memory and writes them to `flight_recorder/rank-N` when a collective fails or
times out; `torchfrtrace` compares such files. The names of the variables are those that every torch from 2.9 to 2.15
reads (newer names exist for three of them, and win where the user has set them).

Since torch 2.15 "nccl" is another implementation, nccl2, which records under that name. It reads the variables of the
recorder and of the error handling; it has no heartbeat, so the two variables about that act on older versions only.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from upscale.files import write_atomically

FOLDER = "flight_recorder"
NEWER_NAMES = {
    "TORCH_NCCL_TRACE_BUFFER_SIZE": "TORCH_FR_BUFFER_SIZE",
    "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": "TORCH_FR_DUMP_TEMP_FILE",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "TORCH_FR_DUMP_ON_TIMEOUT",
}
DUMP_SECONDS = 10.0


def variables(
    environment: Mapping[str, str], device_type: str, run_directory: Path, timeout_seconds: float
) -> dict[str, str]:
    """The environment variables to add before a process group is made; none on a CPU, none that the user has set."""
    if device_type != "cuda":
        return {}
    wanted = {
        # Collectives kept; the last few steps of a model of 59 blocks.
        "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": str(run_directory.absolute() / FOLDER / "rank-"),
        # A collective that fails or times out ends the process, and so does NCCL's own watchdog when it is stuck.
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
        "TORCH_NCCL_ENABLE_MONITORING": "1",
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": str(math.ceil(timeout_seconds)),
    }
    return {
        name: value
        for name, value in wanted.items()
        if name not in environment and NEWER_NAMES.get(name, name) not in environment
    }


def nccl_trace() -> bytes:
    """This rank's record as torch pickles it; which of three places holds it depends on torch's version.

    Without stack traces: to find their names took 19 s of a busy CPU, and the others wait for this rank to end.
    """
    module = torch._C._distributed_c10d
    found = [module._dump_nccl_trace(includeStackTraces=False)] if hasattr(module, "_dump_nccl_trace") else []
    if hasattr(module, "_dump_fr_trace"):
        found += [module._dump_fr_trace(includeStackTraces=False, backend=name) for name in ("nccl", "nccl2")]
    return max(found, key=len, default=b"")


def dump(run_directory: Path, rank: int, trace: Callable[[], bytes] = nccl_trace) -> Path | None:
    """Write this rank's record now; None where that is not possible.

    Reading the record asks the GPU, which may hang as well: after DUMP_SECONDS this returns without it.
    """
    path = run_directory / FOLDER / f"rank-{rank}"
    written = threading.Event()

    def write() -> None:
        write_atomically(path, trace())
        written.set()

    thread = threading.Thread(target=write, name="flight recorder", daemon=True)
    thread.start()
    thread.join(DUMP_SECONDS)
    return path if written.is_set() else None
