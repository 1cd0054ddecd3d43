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
from upscale.randomness.streams import Purpose, Stream


def compiled(config: Config, device: torch.device) -> bool:
    """Whether blocks are compiled: ZeRO 3's hooks would break every graph."""
    if config.model.compile == AUTO:
        return device.type == "cuda" and (config.engine.name, config.engine.zero_stage) != ("deepspeed", 3)
    return config.model.compile


def build(config: Config, world: World) -> tuple[Transformer, engines.Engine]:
    """The model of a resolved config and the engine that trains it."""
    model = parametrization.build(config)
    if compiled(config, world.device):
        model.compile_blocks()
    return model, engines.create(config, model, world)


def most_rows(config: Config, ranks: int, batch: int | None = None) -> int:
    """Rows of a global batch (None: the full one) on the rank that has most."""
    batch = batch or schedule.full_batch_size(config.schedule, config.data.lanes)
    return batch // config.data.lanes * math.ceil(config.data.lanes / ranks)


def micro_batch(config: Config, world: World) -> int:
    """Rows a pass, the same on every rank: the least that one of them has room for.

    How many passes a step takes follows from it, and every pass of a sharded model is full of collectives.
    """
    room = planning.micro_batch(config, world.device, most_rows(config, world.size), world.size)
    return int(world.minimum(room))


class Passes:
    """Sums the gradient of a global batch over micro-batches of at most `micro_batch` rows on each rank.

    `first_lane` is the first of this rank's lanes, which places its rows in the global batch.
    """

    def __init__(self, config: Config, world: World, engine: engines.Engine, first_lane: int, micro_batch: int):
        self.config, self.world, self.engine, self.first_lane = config, world, engine, first_lane
        self.micro_batch, self.compiled = micro_batch, compiled(config, world.device)

    def backpropagate(
        self,
        rows: torch.Tensor,
        batch: int,
        active: int,
        step: int,
        is_spike: Callable[[torch.Tensor], bool] = lambda loss: False,
    ) -> torch.Tensor:
        """Add up the gradient of the global batch; this rank's share of its loss in nats per token, on the device.

        Every rank passes equally many micro-batches of one shape; what it lacks is filled with rows of weight zero.
        `is_spike` judges that share once it is known, before the last backward pass.
        """
        most = most_rows(self.config, self.world.size, batch)
        size = self.micro_batch if self.compiled else min(self.micro_batch, most)
        count = math.ceil(most / size)
        weights = torch.zeros(count * size, device=rows.device)
        skipped = self.config.data.first_target - 1  # predictions whose targets carry no loss
        weights[: len(rows)] = 1 / (batch * (self.config.model.context - skipped))
        rows = torch.cat([rows, rows[:1].expand(count * size - len(rows), -1)])
        keys = self.dropout_keys(count * size, batch, step)
        loss = torch.zeros((), device=rows.device)
        self.engine.train_mode(True)
        for index in range(count):
            part = slice(index * size, (index + 1) * size)
            self.seed_dropout(step, index)
            logits = self.engine.logits(rows[part, :-1], active, row_keys=None if keys is None else keys[part])
            logits = logits[:, skipped:]
            share = (row_losses(logits, rows[part, 1 + skipped :]) * weights[part]).sum()
            loss += share.detach()
            if self.config.optimizer.z_loss:
                share = share + self.config.optimizer.z_loss * (row_z_losses(logits) * weights[part]).sum()
            last = index == count - 1
            if last and is_spike(loss):
                share = share * math.nan  # so that every engine skips the step as one that is not finite
            self.engine.backward(share, last)
        return loss

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
