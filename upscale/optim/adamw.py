"""AdamW for every parameter, with the rates of muP's table of roles."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch.optim.adamw import adamw

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
        return torch_adamw(config, settings, lambda: self.spans)

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


def torch_adamw(config: Config, settings: list[dict], spans: Callable[[], dict] = dict) -> torch.optim.AdamW:
    """torch's AdamW with these groups and the config's other settings.

    Frozen groups are left out, whatever gradient an engine fills in: their moments stay. A tensor in `spans` is stepped
    by its spans (begin, end, steps taken), since its parts were not frozen equally long.
    """
    optimizer = torch.optim.AdamW(
        settings,
        betas=tuple(config.optimizer.betas),
        eps=config.optimizer.epsilon,
        fused=True,  # one pass over memory: on a CPU ten times as fast as one operation after the other
    )
    hidden: dict[torch.Tensor, torch.Tensor] = {}

    def hide(*_arguments: object) -> None:
        for group in optimizer.param_groups:
            for tensor in group["params"]:
                if tensor.grad is not None and (group.get("frozen") or tensor in spans()):
                    hidden[tensor], tensor.grad = tensor.grad, None

    @torch.no_grad()
    def step_spans(*_arguments: object) -> None:
        for group in optimizer.param_groups:
            for tensor in group["params"]:
                if tensor in hidden and not group.get("frozen"):
                    _step_spans(optimizer.state[tensor], tensor, hidden[tensor], group, spans()[tensor])
        for tensor, gradient in hidden.items():
            tensor.grad = gradient
        hidden.clear()

    # Hooks, because DeepSpeed knows torch's own class only.
    optimizer.register_step_pre_hook(hide)
    optimizer.register_step_post_hook(step_spans)
    return optimizer


def _step_spans(
    state: dict, tensor: torch.Tensor, gradient: torch.Tensor, group: dict, spans: list[tuple[int, int, int]]
) -> None:
    """AdamW's step of a flat tensor whose spans count their own steps."""

    def cut(whole: torch.Tensor) -> list[torch.Tensor]:
        return [whole.detach()[begin:end] for begin, end, _ in spans]

    moments = [state[name] for name in STATES]
    counters = [torch.tensor(float(steps), device=tensor.device) for _, _, steps in spans]
    adamw(
        cut(tensor),
        cut(gradient),
        cut(moments[0]),
        cut(moments[1]),
        [],
        counters,
        fused=group["fused"],
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
