"""How large a step's update is beside the weights it changes: another thing that shows early that a model diverges."""

from __future__ import annotations

import math

import torch

from upscale.config import Config
from upscale.distributed.world import World
from upscale.engines import Engine
from upscale.model import parametrization

SAMPLE = 1 << 16
"""Of each piece of a matrix at most so many numbers are remembered, evenly spaced, so that memory stays small."""
MATRICES = ("embedding", "hidden", "output")


class UpdateRatios:
    """Root mean square of an update over that of the weights before it, of every matrix.

    Biases, gains and gates are left out: some begin at zero. `remember` before a step and `ratios` after it are called
    by all ranks alike.
    """

    def __init__(self, config: Config, engine: Engine):
        self.engine, block = engine, config.model.block
        shapes = parametrization.shapes(config)
        self.names = [name for name in shapes if parametrization.role_of(name, block) in MATRICES]
        self.parts = [parametrization.part_of(name, block) for name in self.names]
        self.sizes = [shapes[name].numel() for name in self.names]
        self.places = {name: place for place, name in enumerate(self.names)}
        self.before: list[torch.Tensor] = []

    def remember(self) -> None:
        self.before = [sample.clone() for _, sample, _ in self._samples()]

    def ratios(self, world: World) -> dict[str, float | dict[str, float]]:
        """Two fields of metrics.jsonl, the same on every rank: `update_ratio_maximum` is the largest of all matrices,
        `update_ratio_per_part` that of each part of the model, its matrices taken together."""
        sums = torch.zeros(2, len(self.names), device=world.device)
        for (name, sample, share), before in zip(self._samples(), self.before, strict=True):
            squares = torch.stack([(sample - before).square().mean(), before.square().mean()])
            sums[:, self.places[name]] += (share * squares).to(sums.device)
        self.before = []
        moved, held = world.all_reduce_sum(sums).tolist()
        parts: dict[str, list[float]] = {part: [0.0, 0.0] for part in self.parts}
        for part, size, update, weight in zip(self.parts, self.sizes, moved, held, strict=True):
            parts[part][0] += size * update
            parts[part][1] += size * weight
        largest = max(_ratio(update, weight) for update, weight in zip(moved, held, strict=True))
        return {
            "update_ratio_maximum": largest,
            "update_ratio_per_part": {part: _ratio(*pair) for part, pair in parts.items()},
        }

    def _samples(self):
        """(name, some of its numbers, this piece's share of the parameter) of every piece that this rank holds."""
        for fragment in self.engine.fragments():
            if fragment.name in self.places and len(weight := fragment.tensors["weight"].detach()):
                share = len(weight) / self.sizes[self.places[fragment.name]] / fragment.replicas
                yield fragment.name, weight[:: math.ceil(len(weight) / SAMPLE)], share


def _ratio(update: float, weight: float) -> float:
    return math.sqrt(update / weight) if weight else 0.0
