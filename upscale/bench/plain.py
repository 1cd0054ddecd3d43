"""What the engine is compared with, at one rank: the same model without an engine, and the paper's step.

- `plain PyTorch` runs the same operations, compiled alike, with the same optimizer: only the engine is missing.
- `paper's step` is what one writes first, as the paper's published code does: autocast, attention by two matrix
  products and a softmax, torch's dropout, no compilation, one default AdamW. Autocast is to the run's precision:
  bfloat16 is as fast as the paper's float16, without its loss scaling, and a machine without bfloat16 instructions
  compares float32.

All train on the same rows in passes of the same size.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from upscale import optim
from upscale.config import Config
from upscale.distributed.world import World
from upscale.engines import StepReport
from upscale.model import parametrization
from upscale.model.attention import Attention
from upscale.model.transformer import Transformer, inside
from upscale.training import train_step


class PlainPyTorch:
    """As much of the engine protocol as a step needs, by PyTorch alone, in a world of one."""

    def __init__(self, model: Transformer, optimizer: torch.optim.Optimizer, clip: float):
        self.model, self.optimizer, self.clip = model, optimizer, clip

    def train_mode(self, training: bool) -> None:
        self.model.train(training)

    def logits(
        self, tokens: torch.Tensor, active_blocks: int, last_only: bool = False, row_keys: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.model(tokens, active_blocks, last_only, row_keys)

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        loss.backward()

    def step(self, learning_rate_factor: float, awake_groups: int) -> StepReport:
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip).item()
        if finite := math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad()
        return StepReport(norm, finite)


class UnfusedAttention(nn.Module):
    """The attention of a model that exists, its weights included, as products and a softmax of their own."""

    def __init__(self, fused: Attention):
        super().__init__()
        self.fused = fused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.fused.queries_keys_values(x)
        scores = query @ key.transpose(-2, -1) * self.fused.scale
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        mixed = scores.masked_fill(later, -math.inf).softmax(-1) @ value
        return self.fused.project_out(mixed.transpose(1, 2).reshape(x.shape))


class PlainDropout(nn.Dropout):
    """torch's dropout in the place of the model's."""

    def forward(self, x: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(x)


def without_engine(config: Config, world: World) -> PlainPyTorch:
    model = parametrization.build(config, world.device)
    if train_step.compiled(config, world.device):
        model.compile_blocks()
    optimizer = optim.create(
        config, optim.parameter_groups(model, config), dict(model.named_parameters()), world.device
    )
    return PlainPyTorch(model, optimizer.torch_optimizer, config.optimizer.clip)


def paper_step(config: Config, world: World) -> PlainPyTorch:
    shape = config.model.model_copy(update={"checkpointing": "none"})
    model = parametrization.build(config.model_copy(update={"model": shape}), world.device)
    for block in model.blocks:
        inside(block).attention = UnfusedAttention(inside(block).attention)
        inside(block).attention_dropout = PlainDropout(shape.dropout)
        inside(block).feedforward_dropout = PlainDropout(shape.dropout)
    adamw = torch.optim.AdamW(model.parameters(), lr=config.optimizer.learning_rate)
    return PlainPyTorch(model, adamw, config.optimizer.clip)
