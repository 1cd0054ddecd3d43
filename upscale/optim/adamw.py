"""AdamW for every parameter, with the rates of muP's table of roles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from upscale.model.blocks import Parameter
from upscale.model.parametrization import rule
from upscale.optim.base import Rates, ScheduledOptimizer

if TYPE_CHECKING:
    from upscale.config import Config

STATES = ("exp_avg", "exp_avg_sq")


class ScheduledAdamW(ScheduledOptimizer):
    """torch.optim.AdamW; `optimizer.learning_rate`, `betas`, `epsilon` and `weight_decay` are its settings."""

    kind = "adamw"
    whole_matrices = False

    def build(self, config: Config, settings: list[dict]) -> torch.optim.Optimizer:
        return torch_adamw(config, settings, self.device)

    @classmethod
    def rates(cls, parameter: Parameter, shape: torch.Size, layer: float, config: Config) -> Rates:
        chosen, optimizer = rule(parameter.role, shape, config.model, config.mup), config.optimizer
        return Rates(
            learning_rate=optimizer.learning_rate * (chosen.learning_rate_multiplier * layer),
            weight_decay=optimizer.weight_decay * chosen.weight_decay_multiplier,
        )

    @classmethod
    def states(cls, matrices: int) -> tuple[str, ...]:
        return STATES


def torch_adamw(config: Config, settings: list[dict], device: torch.device) -> torch.optim.AdamW:
    """torch's AdamW with these groups and the config's other settings."""
    return torch.optim.AdamW(
        settings,
        betas=tuple(config.optimizer.betas),
        eps=config.optimizer.epsilon,
        fused=device.type == "cuda",
    )
