"""Runs a program of the project on the stand-in and writes what it asked of the device: python watch.py FILE|VERB ...

Counts come from the stand-in's libraries (runtime.c); each wait is remembered with the line of the project or of
DeepSpeed that it comes from. The report, NULLGPU_REPORTS/rank-N.json, has the fields of `standin.Report`.
"""

from __future__ import annotations

import collections
import ctypes
import json
import os
import runpy
import sys
from pathlib import Path

import torch

COUNTERS = ("launches", "waits", "copies_to_host", "copies_to_device", "collectives")
CODE = ("/upscale/", "/deepspeed/")

library = ctypes.CDLL(None)
waits_at: collections.Counter[str] = collections.Counter()
phases: list[dict] = []


def counts() -> dict[str, int]:
    out = (ctypes.c_long * len(COUNTERS))()
    library.nullgpu_counts(out)
    return dict(zip(COUNTERS, out, strict=True))


@ctypes.CFUNCTYPE(None, ctypes.c_char_p)
def on_wait(call: bytes) -> None:
    """The innermost line of the project or of DeepSpeed, and of the project alone."""
    frame, found = sys._getframe(), []
    while frame:
        name = frame.f_code.co_filename
        if place := next((part for part in CODE if part in name), None):
            found.append(f"{place[1:]}{name.rsplit(place, 1)[1]}:{frame.f_lineno} {frame.f_code.co_name}")
            if place == CODE[0]:
                break
        frame = frame.f_back
    waits_at[" < ".join([call.decode(), *dict.fromkeys([*found[:1], *found[-1:]])])] += 1


def watch(owner: type, method: str, name: str) -> None:
    """Record each call of a method as a phase."""
    real = getattr(owner, method)

    def watched(*arguments, **keywords):
        before, waits_before = counts(), waits_at.copy()
        library.nullgpu_log(f"begin {name}\n".encode())
        result = real(*arguments, **keywords)
        added = {key: value - before[key] for key, value in counts().items()}
        library.nullgpu_log(f"end {name}\n".encode())
        phases.append({"name": name, **added, "waits_at": dict(waits_at - waits_before)})
        return result

    setattr(owner, method, watched)


def report() -> dict:
    started = torch.cuda.is_initialized()
    device = torch.cuda.current_device() if started else None
    return {
        "totals": counts(),
        "phases": phases,
        "waits_at": dict(waits_at),
        "contexts": [index for index in range(torch.cuda.device_count()) if library.nullgpu_has_context(index)],
        "peak_bytes": torch.cuda.max_memory_allocated(device) if started else 0,
        "reserved_bytes": torch.cuda.max_memory_reserved(device) if started else 0,
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"] if "torch._dynamo" in sys.modules else 0,
    }


def main() -> None:
    # upscale.command leaves by os._exit, which no handler of the interpreter sees.
    leave = os._exit
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))

    def leave_with_report(code: int) -> None:
        Path(os.environ["NULLGPU_REPORTS"], f"rank-{rank}.json").write_text(json.dumps(report()))
        leave(code)

    os._exit = leave_with_report
    library.nullgpu_on_wait(on_wait)

    from tests.nullgpu import sparse
    from upscale.checkpoint import export, manager, writer
    from upscale.data import lanes
    from upscale.engines import deepspeed, fsdp
    from upscale.training import train_step

    export.save_file = writer.save_file = sparse.save_file
    watch(lanes.Lanes, "draw", "draw")
    watch(train_step.Microbatches, "backpropagate", "passes")
    watch(deepspeed.DeepSpeedEngine, "step", "optimizer")
    watch(fsdp.FSDPEngine, "step", "optimizer")
    if os.environ.get("NULLGPU_SAVES") == "0":
        manager.Saver.save = lambda saver, seen, counters: None
    watch(manager.Saver, "save", "save")
    del sys.argv[0]
    if sys.argv[0].startswith("--local_rank="):  # DeepSpeed's launcher puts it before the program's own arguments
        sys.argv.append(sys.argv.pop(0))
    if sys.argv[0].endswith(".py"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        from upscale import cli

        sys.argv.insert(0, "upscale")
        cli.main()


if __name__ == "__main__":
    main()
