"""What is made of another run's weights before a run begins with them: rows for other tokens, and controls.

Every parameter is made whole and by itself, on the CPU, and each rank keeps the part that it holds. So the result is
the same under every engine and in every world.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import torch

from upscale.config import Config
from upscale.engines import Fragment
from upscale.model import parametrization, weights
from upscale.model.parametrization import part_of
from upscale.randomness.streams import Purpose, Stream

Read = Callable[[Iterable[Fragment]], None]
"""Fills fragments with the source's numbers."""


class Change:
    """What `init.rows` and `init.control` of a config make of the weights of a source."""

    def __init__(self, source: Config, config: Config):
        self.config, self.seed = config, config.seed("weights")
        self.old, self.new = parametrization.shapes(source), parametrization.shapes(config)

    @property
    def told(self) -> str:
        """For the log: empty where weights are taken as they are."""
        init = self.config.init
        rules = {"embeddings": init.rows.embeddings, "head": init.rows.head, "positions": init.rows.positions}
        words = [f"rows of {what} {rule}" for what, rule in rules.items() if rule != "carried"]
        words += [] if init.control == "none" else [f"each tensor {init.control}"]
        return "".join(f"; {word}" for word in words)

    def fill(self, fragments: Iterable[Fragment], read: Read) -> None:
        """Fill fragments with what becomes of the source's weights; those that stay as they were are read directly."""
        same = []
        for fragment in fragments:
            if self.config.init.control == "none" and self._rule(fragment.name) == "carried":
                same.append(fragment)
                continue
            whole = self._made(fragment.name, read)
            weight = fragment.tensors["weight"]
            with torch.no_grad():
                weight.copy_(whole[fragment.offset : fragment.offset + len(weight)])
        read(same)

    def _rule(self, name: str) -> str:
        rows = self.config.init.rows
        if name.startswith("position_embedding."):
            return rows.positions
        part = part_of(name, self.config.model.block)
        return {"embeddings": rows.embeddings, "head": rows.head}.get(part, "carried")

    def _made(self, name: str, read: Read) -> torch.Tensor:
        """The whole parameter, flat: the control first, as if the source had ended with it, then the rows' rule."""
        old = torch.empty(self.old[name].numel(), dtype=torch.float32)
        read([Fragment(name, 0, {"weight": old})])
        control = self.config.init.control
        if control != "none":
            drawn = torch.empty_like(old)
            weights.draw_normal(drawn, self.seed, f"{name} {control}", old.numel(), 0)
            old = old[drawn.argsort(stable=True)] if control == "shuffled" else with_moments(drawn, old)
        return self._rows(old.view(self.old[name]), self._rule(name), self.new[name]).reshape(-1)

    def _rows(self, old: torch.Tensor, rule: str, shape: torch.Size) -> torch.Tensor:
        """A tensor of this shape whose first dimension counts tokens or positions, from one with another count."""
        if rule == "carried":
            return old
        count, known = shape[0], min(shape[0], len(old))
        if rule == "first":
            return old[:count]
        if rule == "sampled":
            return old[self._sampled(len(old), count)]
        mean = old.mean(0, keepdim=True).expand(shape)
        return torch.cat([old[:known], mean[known:]]) if rule == "matched" else mean

    def _sampled(self, population: int, count: int) -> torch.Tensor:
        """The old row of each token, drawn with replacement; the same for the embedding and the head."""
        key = int.from_bytes(hashlib.blake2b(f"{self.seed} rows".encode(), digest_size=8).digest(), "little")
        return Stream(key, [0], [0]).integers(Purpose.PARAMETER, population, count)[0]


def with_moments(drawn: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`drawn` moved and scaled to the very mean and standard deviation, and so the norm, of the numbers in `like`."""
    drawn, like = drawn.double(), like.double()
    mean, deviation = like.mean(), like.std(correction=0)
    if deviation == 0 or len(drawn) < 2:
        return mean.expand(len(drawn)).float()
    return ((drawn - drawn.mean()) * (deviation / drawn.std(correction=0)) + mean).float()
