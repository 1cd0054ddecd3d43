"""Prints the bytes on the GPU before, with and after an engine of every kind, twice each, as JSON."""

from __future__ import annotations

import gc
import json
import os

import torch

from tests import tiny
from upscale.distributed.world import World
from upscale.training import train_step

KINDS = {
    **{f"stage {stage}": {"engine__name": "deepspeed", "engine__zero_stage": stage} for stage in range(4)},
    "fsdp": {"engine__name": "fsdp"},
}


def allocated() -> int:
    gc.collect()
    return torch.cuda.memory_allocated()


def main() -> None:
    world = World.join()
    found = {}
    for name, changes in KINDS.items():
        config = tiny.config(model__width=256, model__heads=4, model__compile="false", **changes)
        found[name] = []
        for _ in range(2):
            before = allocated()
            _, engine = train_step.build(config, world)
            run = train_step.Microbatches(config, world, engine, 0, 2)
            for step in range(2):
                run.backpropagate(torch.zeros(12, 17, dtype=torch.uint8, device="cuda"), 12, 6, step)
                engine.step(1.0, 9)
            held = allocated()
            engine.close()
            engine = run = _ = None
            found[name].append((before, held, allocated()))
    print(json.dumps(found), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
