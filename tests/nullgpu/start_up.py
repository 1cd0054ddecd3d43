"""Prints, for the first of 8 ranks, the peaks of the device's and the host's memory while an engine is made and its
weights are drawn, as JSON, for every `CONFIG:KIND` among the arguments. Collectives of the fake group do nothing.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.nullgpu.build_and_close import KINDS
from upscale.config import files as config_files
from upscale.distributed.world import World
from upscale.planning import memory, parameters
from upscale.training import train_step

RANKS = 8


def host_bytes() -> int:
    """The most that this process has had in memory so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


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
        torch.cuda.reset_peak_memory_stats()
        before = host_bytes()
        _, engine = train_step.build(config, world)
        found[label] = {
            "device": torch.cuda.max_memory_allocated(),
            "state": sum(states[key] for key in ("weights", "master", "moments", "gradients")),
            "host": host_bytes() - before,
            "model": 4 * parameters(config.model),
        }
        engine.close()
        engine = _ = None
        gc.collect()
    print(json.dumps(found), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
