"""The largest micro-batch that fits: by trying on a GPU, by planning on a CPU."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable
from pathlib import Path

import torch

from upscale import engines, planning, schedule
from upscale.config import AUTO, Config
from upscale.distributed.world import World
from upscale.errors import RunError, UserError
from upscale.planning import memory
from upscale.training import train_step

CONTROL_GROUP = Path("/sys/fs/cgroup")
TRUSTED_SHARE = 0.95
"""Of a GPU's memory, what trials may fill: generators need some too. Several ranks go by extrapolation, because none of
them may run out of it alone."""

CPU_ACTIVATIONS = 1.25
"""What activations take on a CPU, where dropout's masks are floats, of what the plan counts for a GPU; at most."""


def micro_batch(config: Config, world: World, local_ranks: int) -> tuple[int, str]:
    """Rows a pass, and how they were found: `given`, `planned` or `tried`; the same on every rank.

    `local_ranks` are those that share this machine's memory where there is no GPU.
    """
    most = train_step.most_rows(config, world.size)
    if config.engine.micro_batch != AUTO:
        return min(config.engine.micro_batch, most), "given"
    if world.device.type == "cpu":
        planned = memory.largest_micro_batch(config, world.size, free_bytes() / local_ranks / CPU_ACTIVATIONS)
        rows = int(-world.all_reduce_max(-min(planned, most)))
        if rows < 1:
            states = sum(memory.state_bytes(config, world.size).values()) / 2**30
            raise UserError(
                f"{states:.1f} GiB a rank for weights, moments and gradients, and one row beside them, do not fit this "
                "machine's free memory. Use fewer ranks, a smaller model.width or model.depth, or "
                "model.checkpointing=full."
            )
        return rows, "planned"
    trial = Trial(config, world)
    rows = largest(trial.fits, planning.micro_batch(config, world.device, most, world.size), most)
    trial.forget()
    torch._dynamo.reset()
    if not rows:
        raise UserError(
            "not even one row fits: use another engine.name or engine.zero_stage, more ranks, or "
            "model.checkpointing=full"
        )
    return (rows if rows < 16 else rows // 8 * 8), "tried"


def largest(fits: Callable[[int], bool], start: int, most: int) -> int:
    """The largest size from 1 to `most` that `fits`, 0 if none: exact below 16, above to within an eighth.

    Doubles from `start` until one does not fit, or halves until one does, and closes in between the two.
    """
    fitting, failing = 0, most + 1
    size = max(1, min(start, most))
    while failing - fitting > 1:
        if fits(size):
            fitting = size
        else:
            failing = size
        if not fitting:
            size = failing // 2
        elif failing > most:
            size = min(2 * fitting, most)
        elif failing - fitting <= fitting // 8:
            break
        else:
            size = (fitting + failing) // 2
    return fitting


class Trial:
    """Trains two steps at each size asked for; after running out of memory everything is built anew."""

    def __init__(self, config: Config, world: World):
        self.config, self.world = config, world
        self.engine: engines.Engine | None = None
        self.planned = planning.micro_batch(config, world.device, train_step.most_rows(config, world.size), world.size)
        self.peaks: dict[int, int] = {}

    def fits(self, rows: int) -> bool:
        if self.world.size > 1 and not self.is_safe(rows):
            return False
        try:
            self.train(rows)
            return self.world.size > 1 or self.leaves_room()
        except torch.OutOfMemoryError as error:
            if self.world.size > 1:
                raise RunError(
                    f"a rank ran out of memory with {rows} rows a pass, where less was expected. Give a smaller "
                    "engine.micro_batch."
                ) from error
        self.forget()  # only here: the exception's frames hold what was on the device
        return False

    def leaves_room(self) -> bool:
        free, total = torch.cuda.mem_get_info(self.world.device)
        return free >= (1 - TRUSTED_SHARE) * total

    def is_safe(self, rows: int) -> bool:
        """Whether every rank's peak at `rows`, a line through the last two measured, stays below TRUSTED_SHARE."""
        if len(self.peaks) < 2:
            return rows <= self.planned or not self.peaks
        (few, less), (many, more) = list(self.peaks.items())[-2:]
        expected = more + (more - less) / (many - few) * (rows - many)
        _, total = torch.cuda.mem_get_info(self.world.device)
        return not self.world.any(expected > TRUSTED_SHARE * total)

    def train(self, rows: int) -> None:
        """Two steps of two passes: gradients, moments and activations are then all there at once."""
        config, world = self.config, self.world
        torch._dynamo.reset()
        torch.cuda.empty_cache()  # what smaller passes left
        torch.cuda.reset_peak_memory_stats(world.device)
        if self.engine is None:
            _, self.engine = train_step.build(config, world)
        lanes, most = config.data.lanes, schedule.full_batch_size(config.schedule, config.data.lanes)
        per_lane = math.ceil(2 * rows / train_step.most_rows(config, world.size, lanes))
        batch = min(per_lane * lanes, most)
        shape = train_step.most_rows(config, world.size, batch), config.model.context + 1
        tokens = torch.randint(0, min(256, config.model.vocabulary), shape, device=world.device)
        run = train_step.Microbatches(config, world, self.engine, 0, rows)
        run.sizes = (rows,)
        for step in range(2):
            run.backpropagate(tokens, batch, config.model.depth, step)
            self.engine.step(1.0, 2**31)
        torch.cuda.synchronize(world.device)
        self.peaks[rows] = torch.cuda.max_memory_reserved(world.device)

    def forget(self) -> None:
        if self.engine is not None:
            self.engine.close()
        self.engine = None
        gc.collect()
        torch.cuda.empty_cache()


def free_bytes() -> float:
    """What processes on this machine can still take: of its memory, and of this control group's share."""
    information = Path("/proc/meminfo")
    if not information.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = 1024 * int(information.read_text().split("MemAvailable:")[1].split()[0])
    try:
        limit = (CONTROL_GROUP / "memory.max").read_text().strip()
        used = int((CONTROL_GROUP / "memory.current").read_text())
    except OSError:
        return free
    return free if limit == "max" else min(free, int(limit) - used)
