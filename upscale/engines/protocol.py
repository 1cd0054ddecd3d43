"""What the trainer knows of an engine, and nothing else: no DeepSpeed and no sharding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass
class Fragment:
    """A rank's piece of one parameter: elements [offset, offset + n) of it, flattened.

    `tensors` maps `weight`, and each name of the optimizer's states, to a live float32 view of shape (n,); writing to
    them changes the engine's state.
    Of `replicas` ranks with this same piece this one is number `replica`, so that each element is saved once.
    """

    name: str
    offset: int
    tensors: dict[str, torch.Tensor]
    replica: int = 0
    replicas: int = 1


@dataclass
class StepReport:
    """What an optimizer step did: the global gradient norm before clipping, and whether weights changed."""

    gradient_norm: float
    applied: bool


class Trains(Protocol):
    """What a train step needs of an engine."""

    def train_mode(self, training: bool) -> None:
        """Switch dropout on or off."""

    def logits(
        self, tokens: torch.Tensor, active_blocks: int, last_only: bool = False, row_keys: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The model's output; every rank must call it equally often."""

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Add the gradient of this rank's share of the loss; the sum over ranks and calls is the global gradient.

        `last` marks the step's last call; every rank makes the same number of them."""

    def step(self, learning_rate_factor: float, awake_groups: int) -> StepReport:
        """Clip and apply the accumulated gradient; skip and report a non-finite one, the same on every rank."""


class Engine(Trains, Protocol):
    """Trains a model and shows its state; the same losses come out of every engine, stage and number of ranks."""

    def fragments(self) -> Iterator[Fragment]:
        """This rank's weights and moments, for saving and, in place, loading."""

    def steps_taken(self) -> dict[int | str, int]:
        """Applied optimizer steps of every wake-up group since it woke, and of those of its parts ("GROUP/PART") that
        were frozen in some of them."""

    def loaded(self, steps_taken: dict[int | str, int] | None) -> None:
        """Spread what was written through `fragments` to the weights in use; None: a fresh optimizer."""

    def close(self) -> None:
        """Give up the engine, so that its memory comes back once it is dropped: it can be used no more."""
