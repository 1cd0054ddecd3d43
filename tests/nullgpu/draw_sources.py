"""Counts the launches that every shipped source makes for one draw on a GPU, and the waits, as JSON.

python draw_sources.py        a draw of 8 lanes of 16 rows of 513 tokens at width 1024, after one that is not counted

Where what is launched depends on numbers, which the stand-in has not, the operations of the same draw on the CPU are
counted instead, each a launch.
"""

from __future__ import annotations

import ctypes
import json

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from upscale.bench import sources
from upscale.randomness.streams import Stream
from upscale.sources import KINDS

COUNTERS = 5
DEPENDING_ON_NUMBERS = ("automaton", "nca")


VIEWS = {"view", "reshape", "expand", "select", "slice", "unsqueeze", "squeeze", "transpose", "t", "permute", "detach",
         "alias", "as_strided", "split", "split_with_sizes", "unbind", "chunk", "_unsafe_view", "empty", "empty_like",
         "empty_strided", "new_empty", "unfold", "lift_fresh", "_reshape_alias", "view_as", "diagonal"}  # fmt: skip


def counts() -> tuple[int, int]:
    found = (ctypes.c_long * COUNTERS)()
    ctypes.CDLL(None).nullgpu_counts(found)
    return found[0], found[1]


class Operations(TorchDispatchMode):
    """Counts operations that compute, and those that hand a number to Python."""

    def __init__(self):
        super().__init__()
        self.launches = self.waits = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function._schema.name.removeprefix("aten::")
        self.launches += name not in VIEWS
        self.waits += name in ("_local_scalar_dense", "nonzero", "unique", "_unique2")
        return function(*arguments, **(keywords or {}))


def on_gpu(source, model) -> tuple[int, int]:
    before = 0, 0
    conditions, seeds = sources.inputs(source, model, torch.device("cuda"))
    for turn in range(2):
        before = counts()
        source.write(stream(turn, "cuda"), conditions, seeds)
    return counts()[0] - before[0], counts()[1] - before[1]


def on_cpu(source, model) -> tuple[int, int]:
    conditions, seeds = sources.inputs(source, model, torch.device("cpu"))
    with Operations() as operations:
        source.write(stream(1, "cpu"), conditions, seeds)
    return operations.launches, operations.waits


def stream(turn: int, device: str) -> Stream:
    return Stream(0, range(sources.LANES), [turn] * sources.LANES, device)


def main() -> None:
    found = {}
    for kind, settings in KINDS.items():
        for name, keys in settings.measured.items():
            entry, model = sources.resolved({"kind": kind, **keys}, 1024)
            source, where = entry.build(model.vocabulary), "cpu" if kind in DEPENDING_ON_NUMBERS else "gpu"
            launches, waits = (on_cpu if where == "cpu" else on_gpu)(source, model)
            in_workers = entry.launches_many(model)
            found[f"{kind} {name}".strip()] = dict(launches=launches, waits=waits, counted=where, workers=in_workers)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
