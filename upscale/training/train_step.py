"""How one step's rows pass through the model: in micro-batches of one shape, equally many on every rank."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import torch

from upscale import engines, planning, schedule
from upscale.config import AUTO, Config
from upscale.distributed.world import World
from upscale.model import parametrization
from upscale.model.transformer import Transformer, row_losses, row_z_losses
from upscale.planning import memory
from upscale.randomness.streams import Purpose, Stream
from upscale.sources.tokens import ids
from upscale.training.source_losses import SourceLosses


def compiled(config: Config, device: torch.device) -> bool:
    """Whether blocks are compiled there; auto: on GPUs, where the engine allows it."""
    if config.model.compile == AUTO and device.type != "cuda":
        return False
    return memory.compiled(config)


def build(config: Config, world: World, initialized: bool = True) -> tuple[Transformer, engines.Engine]:
    """The model of a resolved config and the engine that trains it; if not `initialized`, weights are still to come."""
    model = parametrization.build(config, "meta")
    if compiled(config, world.device):
        model.compile_blocks()
    engine = engines.create(config, model, world)
    if initialized:
        engines.initialize(config, engine.fragments())
        engine.loaded(None)
    return model, engine


def most_rows(config: Config, ranks: int, batch: int | None = None) -> int:
    """Rows of a global batch (None: the full one) on the rank that has most."""
    batch = batch or schedule.full_batch_size(config.schedule, config.data.lanes)
    return batch // config.data.lanes * math.ceil(config.data.lanes / ranks)


def micro_batch(config: Config, world: World) -> int:
    """Rows a pass, the same on every rank: the least that one of them has room for.

    How many passes a step takes follows from it, and every pass of a sharded model is full of collectives.
    """
    room = planning.micro_batch(config, world.device, most_rows(config, world.size), world.size)
    return int(world.all_reduce_min(room))


MOST_COMPILED_SIZES = 4
"""Graphs for training; evaluation adds one, and torch gives up on a block after eight."""
NEGLIGIBLE_PADDING = 0.03


def compiled_sizes(config: Config, ranks: int, micro_batch: int) -> tuple[int, ...]:
    """The few sizes of micro-batch to compile, ascending: padding to them costs little over the whole schedule.

    Starts with the size that fits every batch and adds, one by one, what saves most arithmetic: until padding is below
    NEGLIGIBLE_PADDING of it, or MOST_COMPILED_SIZES are chosen. The same on every rank.
    """
    work: dict[tuple[int, int], float] = {}  # floating-point operations a row, by (passes, rows a pass without padding)
    seen = 0
    while seen < config.schedule.instances:
        batch = schedule.batch_size(seen, config.schedule, config.data.lanes)
        active = schedule.active_blocks(seen, config.schedule, config.model)
        key = split(most_rows(config, ranks, batch), micro_batch)
        work[key] = work.get(key, 0.0) + planning.flops_per_token(config.model, active)
        seen += batch
    needed = sorted({size for _, size in work})

    def cost(sizes: list[int]) -> float:
        return sum(flops * count * min(s for s in sizes if s >= size) for (count, size), flops in work.items())

    chosen, least = needed[-1:], cost(needed)
    while len(chosen) < MOST_COMPILED_SIZES and cost(chosen) > (1 + NEGLIGIBLE_PADDING) * least:
        chosen.append(min(set(needed) - set(chosen), key=lambda size: cost([*chosen, size])))
    return tuple(sorted(chosen))


def split(rows: int, micro_batch: int) -> tuple[int, int]:
    """The number of passes for so many rows of a rank, and the rows of each."""
    count = math.ceil(rows / micro_batch)
    return count, math.ceil(rows / count)


class Microbatches:
    """Sums the gradient of a global batch over micro-batches of at most `micro_batch` rows on each rank.

    `first_lane` is the first of this rank's lanes, which places its rows in the global batch. `sizes` are those of
    compiled micro-batches, ascending; an eager one has as many rows as it needs.
    """

    def __init__(self, config: Config, world: World, engine: engines.Trains, first_lane: int, micro_batch: int):
        self.config, self.world, self.engine, self.first_lane = config, world, engine, first_lane
        self.micro_batch = micro_batch
        self.sizes = compiled_sizes(config, world.size, micro_batch) if compiled(config, world.device) else ()

    def backpropagate(
        self,
        rows: torch.Tensor,
        batch: int,
        active: int,
        step: int,
        is_spike: Callable[[torch.Tensor], bool] = lambda loss: False,
        losses: SourceLosses | None = None,
    ) -> torch.Tensor:
        """Add up the gradient of the global batch; this rank's share of its loss in nats per target, on the device.

        Every target of the global batch weighs the same, in whichever row it stands. Every rank passes equally many
        micro-batches of one shape; what it lacks is filled with rows of weight zero. `is_spike` judges that share once
        it is known, before the last backward pass. `losses` is told what each row lost.
        """
        count, size = split(most_rows(self.config, self.world.size, batch), self.micro_batch)
        size = min((known for known in self.sizes if known >= size), default=size)
        weights = torch.zeros(count * size, device=rows.device)
        skipped = self.config.data.first_target - 1  # predictions whose targets carry no loss
        weights[: len(rows)] = self.weight_of_a_target(rows, batch, skipped)
        rows = torch.cat([rows, rows[:1].expand(count * size - len(rows), -1)])
        keys = self.dropout_keys(count * size, batch, step)
        loss = torch.zeros((), device=rows.device)
        self.engine.train_mode(True)
        for index in range(count):
            part = slice(index * size, (index + 1) * size)
            self.seed_dropout(step, index)
            logits = self.engine.logits(ids(rows[part, :-1]), active, row_keys=None if keys is None else keys[part])
            logits, targets = logits[:, skipped:], rows[part, 1 + skipped :]
            of_rows = row_losses(logits, targets)
            share = (of_rows * weights[part]).sum()
            loss += share.detach()
            if losses:
                losses.add(index * size, of_rows.detach(), (targets >= 0).sum(1))
            if self.config.optimizer.z_loss:
                share = share + self.config.optimizer.z_loss * (row_z_losses(logits, targets) * weights[part]).sum()
            last = index == count - 1
            if last and is_spike(loss):
                share = share * math.nan  # so that every engine skips the step as one that is not finite
            self.engine.backward(share, last)
        return loss

    def weight_of_a_target(self, rows: torch.Tensor, batch: int, skipped: int) -> torch.Tensor | float:
        """One over the targets of the global batch, which are counted over the ranks where rows choose their own.

        There is at least one in each row: sources and corpora that could write another are refused before the start.
        """
        data = self.config.data
        if rows.dtype == torch.uint8 or (data.kind == "synthetic" and not data.masked):
            return 1 / (batch * (self.config.model.context - skipped))
        return 1 / self.world.all_reduce_sum((rows[:, 1 + skipped :] >= 0).sum())

    def seed_dropout(self, step: int, index: int) -> None:
        """Torch's masks depend on (seed, step, micro-batch, rank): a resumed run in the same world draws them again."""
        key = f"dropout {self.config.run.seed} {step} {index} {self.world.rank}".encode()
        torch.manual_seed(int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "little"))

    def dropout_keys(self, count: int, batch: int, step: int) -> torch.Tensor | None:
        """Keys of this rank's rows by their place in the global batch, when `model.dropout_keys` is row."""
        if self.config.model.dropout_keys == "rank" or not self.config.model.dropout:
            return None
        first = self.first_lane * (batch // self.config.data.lanes)
        places = torch.arange(first, first + count, device=self.world.device)
        stream = Stream(self.config.run.seed, places, torch.full_like(places, step), self.world.device)
        return stream.bits(Purpose.DROPOUT, 1)[:, 0]
