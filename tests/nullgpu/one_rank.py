"""One rank of many on the stand-in: the allocator's real peak beside the plan's, of shipped configs at their full size.

python one_rank.py "RANKS ROWS CONFIG [section.key=value ...]" ...

Each case trains two steps of two microbatches of ROWS rows with all blocks awake, in a process of its own, and prints
one JSON object: bytes, and how often the second step waits for the device and how many kernels its optimizer launches.
The other ranks are a fake group whose collectives do nothing.
"""

from __future__ import annotations

import json
import os
import sys

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.nullgpu.watch import counts
from upscale.config import files as config_files
from upscale.distributed.world import World
from upscale.machine import accelerator
from upscale.planning import memory
from upscale.training import train_step

PASSES = 2


def measure(ranks: int, rows: int, name: str, overrides: list[str]) -> dict:
    batch = [f"data.lanes={ranks}", *(f"schedule.batch.{end}={ranks * PASSES * rows}" for end in ("start", "end"))]
    config = config_files.load(
        f"configs/{name}.yaml", ["engine.precision=bf16", *overrides, *batch, f"engine.micro_batch={rows}"]
    ).resolved()
    accelerator.let_segments_grow()
    torch.cuda.set_device(0)
    os.environ.update(RANK="0", WORLD_SIZE=str(ranks), LOCAL_RANK="0")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    world = World(0, ranks, torch.device("cuda", 0), "fake")
    world.gather_objects = lambda item: [item] * ranks
    _, engine = train_step.build(config, world)
    torch.cuda.reset_peak_memory_stats()
    microbatches = train_step.Microbatches(config, world, engine, 0, rows)
    tokens = torch.zeros(PASSES * rows, config.model.context + 1, dtype=torch.uint8, device="cuda")
    for step in range(2):
        before = counts()
        microbatches.backpropagate(tokens, len(tokens) * ranks, config.model.depth, step)
        between = counts()
        engine.step(1.0, 2**31)
    after = counts()
    return {
        "peak": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "planned": memory.peak_bytes(config, ranks, rows, PASSES),
        "states": memory.state_bytes(config, ranks),
        "activations": memory.activation_bytes(config, rows),
        "waits": after["waits"] - before["waits"],
        "optimizer_launches": after["launches"] - between["launches"],
    }


def main(cases: list[str]) -> None:
    for case in cases:
        ranks, rows, name, *overrides = case.split()
        if not (child := os.fork()):
            print(json.dumps({"case": case, **measure(int(ranks), int(rows), name, overrides)}), flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, case


if __name__ == "__main__":
    main(sys.argv[1:])
