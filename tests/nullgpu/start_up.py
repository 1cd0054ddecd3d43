"""Prints, for the first of 8 ranks, the peaks of the device's and the host's memory while an engine is made and its
weights are drawn, as JSON, for every `CONFIG:KIND` among the arguments. Collectives of the fake group do nothing.
"""

from __future__ import annotations

import gc
import json
import os
import re
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.nullgpu.build_and_close import KINDS
from upscale.config import files as config_files
from upscale.distributed.world import World
from upscale.planning import memory, parameters
from upscale.training import train_step

RANKS = 8


def host_bytes(field: str) -> int:
    """This process's memory now (VmRSS), or its most since the last `begin` (VmHWM)."""
    return 1024 * int(re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])


def begin() -> int:
    """Let both peaks start here; what the host holds now."""
    torch.cuda.reset_peak_memory_stats()
    Path("/proc/self/clear_refs").write_text("5")
    return host_bytes("VmRSS")


def main() -> None:
    torch.cuda.set_device(0)
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE=str(RANKS))
    dist.init_process_group("fake", rank=0, world_size=RANKS, store=FakeStore())
    world = World(0, RANKS, torch.device("cuda", 0), "fake")
    found = {}
    for label in ["w384:stage 1", *sys.argv[1:]]:  # the first imports and compiles
        name, kind = label.split(":")
        overrides = [f"{key.replace('__', '.')}={value}" for key, value in KINDS[kind].items()]
        config = config_files.load(f"configs/{name}.yaml", [*overrides, "engine.precision=bf16"]).resolved()
        states = memory.state_bytes(config, RANKS)
        before = begin()
        _, engine = train_step.build(config, world)
        found[label] = {
            "device": torch.cuda.max_memory_allocated(),
            "state": sum(states[key] for key in ("weights", "master", "moments", "gradients")),
            "host": host_bytes("VmHWM") - before,
            "model": 4 * parameters(config.model),
        }
        engine.close()
        engine = _ = None
        gc.collect()
    print(json.dumps(found), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
