"""How much memory a rank needs to save and to load a checkpoint, beyond what it holds for training.

`python -m tests.benchmarks.checkpoint_memory --to docs/benchmarks/checkpoint_memory.json` saves and loads a model of
width 512 with its moments on 1, 2 and 4 ranks, each in new processes, and reads the kernel's own high-water mark of
every rank. No copy of all weights and moments may ever be on one rank: what is added should shrink with the ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import torch

from tests import tiny
from tests.ranks import run_ranks
from upscale import engines, planning
from upscale.checkpoint.manager import Counters, Saver
from upscale.config import Config
from upscale.data import lanes
from upscale.distributed.world import World
from upscale.model import parametrization
from upscale.optim.adamw import STATES

ENGINES = {
    "deepspeed stage 1": {"engine__zero_stage": 1},
    "deepspeed stage 3": {"engine__zero_stage": 3},
    "fsdp": {"engine__name": "fsdp"},
}
RANKS = (1, 2, 4)
MIB = 2**20


def config(engine: str, width: int, depth: int) -> Config:
    sizes = {"model__width": width, "model__depth": depth, "model__heads": max(1, width // 128), "model__context": 64}
    return tiny.config(data__sources="[{kind: uniform}]", **sizes, **ENGINES[engine])


def resident(field: str) -> int:
    """Bytes from /proc/self/status: VmRSS now, VmHWM at most since the last `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def forget_peak() -> int:
    """Start a new high-water mark; the bytes resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def session(world: World, folder: Path, config: Config) -> Saver:
    engine = engines.create(config, parametrization.build(config), world)
    owned = lanes.owned_lanes(config.data.lanes, world.rank, world.size)
    for fragment in engine.fragments():
        for state in STATES:
            fragment.tensors[state].normal_()  # pages of zeros would not be resident
    return Saver(config, folder, world, engine, lanes.from_config(config, owned, world.device))


def save(world: World, folder: Path, config: Config) -> dict:
    saver = session(world, folder, config)
    before, begin = forget_peak(), time.perf_counter()
    saver.save(0, Counters(step=1, instances=12))
    blocking_seconds = saver.take_blocking_seconds()
    failure = saver.wait()
    seconds = time.perf_counter() - begin
    assert not failure, failure
    return {
        "held": before,
        "added": resident("VmHWM") - before,
        "seconds": seconds,
        "blocking_seconds": blocking_seconds,
    }


def load(world: World, folder: Path, config: Config) -> dict:
    saver = session(world, folder, config)
    before, begin = forget_peak(), time.perf_counter()
    counters, _ = saver.resume()
    seconds = time.perf_counter() - begin
    assert counters.step == 1
    return {"held": before, "added": resident("VmHWM") - before, "seconds": seconds}


def measure(folder: Path, engine: str, ranks: int, width: int, depth: int) -> dict:
    """The largest value of any rank, in MiB and seconds."""
    chosen = config(engine, width, depth)
    saved = run_ranks(save, ranks, folder, chosen, timeout_seconds=600)
    loaded = run_ranks(load, ranks, folder, chosen, timeout_seconds=600)
    full = 12 * planning.parameters(chosen.model)

    def most(results: list[dict], key: str) -> float:
        return max(result[key] for result in results)

    return {
        "weights_and_moments_mib": round(full / MIB, 1),
        "bytes_on_disk": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "saving_adds_mib": round(most(saved, "added") / MIB, 1),
        "saving_adds_share": round(most(saved, "added") / full, 3),
        "save_seconds": round(most(saved, "seconds"), 3),
        "blocking_seconds": round(most(saved, "blocking_seconds"), 3),
        "loading_adds_mib": round(most(loaded, "added") / MIB, 1),
        "loading_adds_share": round(most(loaded, "added") / full, 3),
        "load_seconds": round(most(loaded, "seconds"), 3),
        "held_before_mib": round(most(saved, "held") / MIB, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=Path("docs/benchmarks/checkpoint_memory.json"), help="file to write")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    options = parser.parse_args()
    found: dict[str, dict[str, dict]] = {}
    for engine in options.engines:
        for ranks in RANKS:
            with tempfile.TemporaryDirectory() as folder:
                result = measure(Path(folder), engine, ranks, options.width, options.depth)
            found.setdefault(engine, {})[f"{ranks} ranks"] = result
            print(engine, ranks, json.dumps(result), flush=True)
    record = {
        "what": "resident memory that saving and loading add to a rank, at most, of any rank; the state is 12 bytes a "
        "parameter; held_before includes Python, torch and the engine",
        "setting": f"width {options.width}, {options.depth} blocks, gloo on {len(os.sched_getaffinity(0))} CPU core(s) "
        "for all ranks",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "engines": found,
    }
    options.to.parent.mkdir(parents=True, exist_ok=True)
    options.to.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
