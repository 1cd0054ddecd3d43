"""The loss of each source in a step, and how far it is above the least that is possible."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch

from upscale.config import Config
from upscale.distributed.world import World
from upscale.sources import SourceSettings


def names(sources: Sequence[SourceSettings]) -> list[str]:
    """What each entry of `data.sources` is called: its kind, with its place (from 0) where several are of one kind."""
    kinds = Counter(source.kind for source in sources)
    return [
        source.kind if kinds[source.kind] == 1 else f"{source.kind} {place}" for place, source in enumerate(sources)
    ]


class SourceLosses:
    """Sums of the losses of one step's rows, by the source that wrote them; rows of no source are left out.

    `origins` (rows,) uint8 are this rank's rows' places in `data.sources`.
    """

    def __init__(self, config: Config, origins: torch.Tensor):
        self.config, self.count = config, len(config.data.sources)
        self.origins = origins.long().clamp(max=self.count)
        self.sums = torch.zeros(2, self.count + 1, device=origins.device)
        """Nats and targets of each source and, last, of all other rows."""

    def add(self, first: int, losses: torch.Tensor, targets: torch.Tensor) -> None:
        """Count rows from number `first` on: (rows,) nats and (rows,) targets; those beyond the rank's are padding."""
        origins = self.origins[first : first + len(losses)]
        for place, values in enumerate((losses, targets.float())):
            self.sums[place].index_add_(0, origins, values[: len(origins)])

    def reduce(self, loss: torch.Tensor, world: World) -> tuple[float, dict[str, dict[str, float | None]]]:
        """The global loss in bits from every rank's share (nats), and two fields of metrics.jsonl.

        `loss_bits_per_source` has the bits per target of each source that wrote a row of this step, null where not
        finite, `excess_bits_per_source` of these the ones whose optimum is known, less it. One all-reduce.
        """
        everything = world.all_reduce_sum(torch.cat([loss[None], self.sums.flatten()])).tolist()
        nats, targets = everything[1 : 1 + self.count], everything[2 + self.count : -1]
        model, first_target = self.config.model, self.config.data.first_target
        bits, excess = {}, {}
        for name, source, lost, count in zip(
            names(self.config.data.sources), self.config.data.sources, nats, targets, strict=True
        ):
            if not count:
                continue
            mean = lost / count / math.log(2)
            bits[name] = mean if math.isfinite(mean) else None
            optimum = None if self.config.data.control != "none" else source.optimum(model, first_target)
            if optimum is not None:
                excess[name] = mean - optimum if math.isfinite(mean) else None
        return everything[0] / math.log(2), {"loss_bits_per_source": bits, "excess_bits_per_source": excess}
