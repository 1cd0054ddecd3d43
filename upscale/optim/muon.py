"""Muon (Jordan et al. 2024) for the hidden matrices, AdamW for all other parameters.

A matrix moves by its momentum with every singular value replaced by about one: the orthogonal matrix nearest to it, by
a few Newton-Schulz iterations. The spectral norm of a step is then learning rate times sqrt(fan out / fan in), the size
that keeps features of the same size at every width (Yang et al. 2023, A spectral condition for feature learning). So
under muP one learning rate and one weight decay hold at every width, and without muP they are the same numbers.

torch.optim.Muon does this for matrices that are whole (the tests compare with it, bit by bit). Here queries, keys and
values, which lie in one parameter, are three matrices; FSDP2's shards are gathered first; and with
`engine.precision: fp32` the iterations are in float32, so that every world computes the same.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field

from upscale.model.blocks import Parameter
from upscale.optim.adamw import ScheduledAdamW, torch_adamw
from upscale.optim.base import Rates, ScheduledOptimizer
from upscale.settings import Count, NotNegative, Positive, Section

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

    from upscale.config import Config

MOMENTUM = "momentum_buffer"
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the iteration x -> a x + b x^3 + c x^5 on singular values, which brings those in (0, 1] near one."""
SMALLEST_NORM = 1e-7


class MuonSettings(Section):
    """`optimizer.muon`, read with `optimizer.kind: muon` only; the other keys of `optimizer` are AdamW's."""

    learning_rate: Positive = 0.02
    """Learning rate of hidden matrices, at every width: the spectral norm of a step over sqrt(fan out / fan in)."""
    weight_decay: NotNegative = 0.01
    """Decoupled weight decay of hidden matrices, at every width."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay rate of the gradient's running mean; the step looks ahead by it (Nesterov)."""
    newton_schulz_steps: Count = 5
    """Iterations that make a step orthogonal."""


class ScheduledMuon(ScheduledOptimizer):
    kind = "muon"
    whole_matrices = True

    def build(self, config: Config, settings: list[dict]) -> torch.optim.Optimizer:
        for group, setting in zip(self.groups, settings, strict=True):
            setting["matrices"] = group.matrices
        return MuonAndAdamW(config, settings, self.device)

    @classmethod
    def rates(cls, parameter: Parameter, shape: torch.Size, layer: float, config: Config) -> Rates:
        if parameter.role != "hidden":
            return ScheduledAdamW.rates(parameter, shape, layer, config)
        muon = config.optimizer.muon
        return Rates(muon.learning_rate * layer, muon.weight_decay, parameter.matrices)

    @classmethod
    def states(cls, matrices: int) -> tuple[str, ...]:
        return (MOMENTUM,) if matrices else ScheduledAdamW.states(matrices)

    @classmethod
    def step_flops(cls, shape: torch.Size, matrices: int, config: Config) -> float:
        """Each iteration is two products of an m x n matrix with m <= n and one of its m x m square."""
        if not matrices:
            return 0.0
        short, long = sorted((shape[0] // matrices, shape[1]))
        return matrices * config.optimizer.muon.newton_schulz_steps * (4 * short**2 * long + 2 * short**3)


class MuonAndAdamW(torch.optim.Optimizer):
    """One optimizer whose groups with `matrices` are stepped by Muon and whose others are stepped by torch's AdamW."""

    def __init__(self, config: Config, settings: list[dict], device: torch.device):
        super().__init__(settings, {})
        self.param_groups: list[dict]
        self.momentum = config.optimizer.muon.momentum
        self.iterations = config.optimizer.muon.newton_schulz_steps
        self.dtype = torch.bfloat16 if config.engine.in_bfloat16 else torch.float32
        self.adamw = torch_adamw(config, [group for group in self.param_groups if not group["matrices"]])
        self.adamw.state = self.state
        others = iter(self.adamw.param_groups)  # the very objects that AdamW reads its rates from
        self.param_groups = [group if group["matrices"] else next(others) for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"] if group["matrices"] and not group.get("frozen") else ():
                if parameter.grad is not None:
                    self._step_matrices(parameter, group)
        self.adamw.step()

    def _step_matrices(self, parameter: torch.Tensor, group: dict) -> None:
        state = self.state[parameter]
        if MOMENTUM not in state:
            state[MOMENTUM] = torch.zeros_like(parameter, requires_grad=False)
        mean, gradient = local(state[MOMENTUM]), local(parameter.grad)
        mean.lerp_(gradient, 1 - self.momentum)
        ahead = gradient.lerp(mean, self.momentum)
        parts = whole(ahead, parameter).chunk(group["matrices"])
        moved = own_shard(torch.cat([self._direction(part) for part in parts]), parameter)
        local(parameter).mul_(1 - group["lr"] * group["weight_decay"]).add_(moved, alpha=-group["lr"])

    def _direction(self, matrix: torch.Tensor) -> torch.Tensor:
        fan_out, fan_in = matrix.shape
        return orthogonalized(matrix, self.iterations, self.dtype).float() * math.sqrt(fan_out / fan_in)


def orthogonalized(matrix: torch.Tensor, iterations: int, dtype: torch.dtype) -> torch.Tensor:
    """The matrix with its singular values brought near one, computed in `dtype`."""
    a, b, c = COEFFICIENTS
    x = matrix.to(dtype, copy=True)
    if tall := x.shape[0] > x.shape[1]:
        x = x.T
    x.div_(x.norm().clamp(min=SMALLEST_NORM))
    for _ in range(iterations):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a tensor."""
    cut = as_dtensor(tensor)
    return tensor if cut is None else cut.to_local()


def whole(shard: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """The tensor of which this rank holds `shard`, cut as `parameter` is; every rank that shares it must call this."""
    like = as_dtensor(parameter)
    if like is None:
        return shard
    cut = type(like).from_local(
        shard,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )
    return cut.full_tensor()


def own_shard(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """This rank's part of a whole tensor, cut as `parameter` is."""
    like = as_dtensor(parameter)
    if like is None:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None).to_local()


def as_dtensor(tensor: torch.Tensor) -> DTensor | None:
    """The tensor, when it is one of FSDP2's shards.

    Whoever made a shard has imported its class. Importing it here would cost every reading of a config, which has the
    optimizers' settings, a quarter of its time.
    """
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensor if tensors and isinstance(tensor, tensors.DTensor) else None
