"""The coordinate check (Yang et al. 2022, section D.1): do activations and their changes keep their size at any width?

A few steps are trained at each width. Then the mean absolute value of what each linear layer gives, and of how far
training has moved it, is a power of the width: with muP one with an exponent near zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from upscale import optim
from upscale.config import Config
from upscale.model.transformer import Transformer, row_losses

STEPS, ROWS = 4, 8
LARGEST_SLOPE = 0.3
"""With muP slopes over widths 64 to 512 were up to 0.2, without it the largest was 0.8 and more, for every block."""
LOGITS = "logits"
ALL_AWAKE = 2**31
HELD_OUT = 99


@dataclass(frozen=True)
class Coordinate:
    """Mean absolute values of one layer's output over held-out rows: after the steps, and of what they changed; or the
    slopes of both over the width."""

    size: float
    change: float


def rows(context: int, step: int) -> torch.Tensor:
    """The rows of one step, (ROWS, context + 1), of two token ids: of so few a model learns something in a few steps.

    Of many, drawn alike, it would learn what shrinks as 1 / sqrt(width) where no position is common to all rows.
    """
    return torch.randint(0, 2, (ROWS, context + 1), generator=torch.Generator().manual_seed(step))


@torch.no_grad()
def outputs(model: Transformer, logits: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the linear layers of the blocks give for held-out rows, and the logits, by name; `logits` calls the model,
    by itself or through an engine."""
    found: dict[str, torch.Tensor] = {}

    def keeping(name: str) -> Callable:
        def keep(_module, _inputs, output: torch.Tensor) -> None:
            found[name] = output.float().clone()

        return keep

    hooks = [
        module.register_forward_hook(keeping(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("blocks.")
    ]
    try:
        found[LOGITS] = logits(rows(model.config.context, HELD_OUT)[:, :-1]).float().clone()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def measure(
    model: Transformer, logits: Callable[[torch.Tensor], torch.Tensor], train: Callable[[torch.Tensor], None]
) -> dict[str, Coordinate]:
    """Every layer's coordinate after STEPS calls of `train`, which takes the rows of a step."""
    before = outputs(model, logits)
    for step in range(STEPS):
        train(rows(model.config.context, step))
    after = outputs(model, logits)
    return {
        name: Coordinate(_mean_absolute(output), _mean_absolute(output - before[name]))
        for name, output in after.items()
    }


def measure_plainly(config: Config, model: Transformer) -> dict[str, Coordinate]:
    """As `measure`, trained by the config's optimizer without an engine, with every block awake."""
    groups = optim.parameter_groups(model, config)
    optimizer = optim.create(config, groups, dict(model.named_parameters()), torch.device("cpu"))

    def train(batch: torch.Tensor) -> None:
        model.zero_grad()
        (row_losses(model(batch[:, :-1]), batch[:, 1:]).sum() / (ROWS * config.model.context)).backward()
        optimizer.prepare(1.0, ALL_AWAKE)
        optimizer.torch_optimizer.step()
        optimizer.count(ALL_AWAKE)

    return measure(model, model, train)


def slopes(widths: Sequence[int], measured: Sequence[dict[str, Coordinate]]) -> dict[str, Coordinate]:
    """The slopes of log(size) and log(change) over log(width), by least squares, for each layer."""
    return {
        name: Coordinate(
            slope(widths, [one[name].size for one in measured]), slope(widths, [one[name].change for one in measured])
        )
        for name in measured[0]
    }


def steep(name: str, found: Coordinate) -> list[str]:
    """Which of a layer's two slopes, `size` and `change`, are no longer flat.

    Not the size of the logits: random ones shrink with the width, and are what a few small steps leave.
    """
    kinds = ("change",) if name == LOGITS else ("size", "change")
    return [kind for kind in kinds if not abs(getattr(found, kind)) <= LARGEST_SLOPE]


def slope(widths: Sequence[int], values: Sequence[float]) -> float:
    """The slope of log(value) over log(width), by least squares; not a number where a value is zero or not finite."""
    if not all(0 < value < math.inf for value in values):
        return math.nan
    x, y = ([math.log2(number) for number in numbers] for numbers in (widths, values))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread


def _mean_absolute(tensor: torch.Tensor) -> float:
    return tensor.abs().mean().item()
