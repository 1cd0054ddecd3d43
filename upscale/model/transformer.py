"""The byte-level transformer: a stack of blocks of one kind (model/blocks), all but the first few progressive."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from upscale.model import activation_checkpointing, blocks
from upscale.model.attention import rms_norm
from upscale.model.blocks import Block
from upscale.model.dropout import block_keys

if TYPE_CHECKING:
    from upscale.config import ModelConfig


class ResidualBlock(nn.Module):
    """x + Block(x), for a block that gives what is added to x."""

    def __init__(self, block: Block):
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        return x + self.block(x, keys)


class ProgressiveBlock(ResidualBlock):
    """x + a * Block(x) with a learned scalar a = 0, so that taking part for the first time changes nothing."""

    def __init__(self, block: Block):
        super().__init__(block)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        return x + self.gate * self.block(x, keys)


def stacked(model: ModelConfig, index: int) -> nn.Module:
    """Block number `index` of a model with what is around it: nothing, a sum, or a sum behind a gate."""
    block = blocks.KINDS[model.block](model)
    if index >= model.plain_blocks:
        return ProgressiveBlock(block)
    return ResidualBlock(block) if block.residual else block


def inside(block: nn.Module) -> Block:
    """The block itself, without what `stacked` put around it."""
    return block.block if isinstance(block, ResidualBlock) else block


class Transformer(nn.Module):
    """Tokens in, logits of the next token out.

    The precision belongs to the model and not to an engine: weights stay in float32 under every engine, and with
    `bf16` the matrix products run in bfloat16 by autocast, as the paper's did in float16.
    """

    def __init__(self, config: ModelConfig, output_multiplier: float, bf16: bool = False):
        super().__init__()
        self.config, self.output_multiplier, self.bf16 = config, output_multiplier, bf16
        self.compiled = False
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        kind = blocks.KINDS[config.block]
        self.position_embedding = nn.Embedding(config.context, config.width) if kind.learned_positions else None
        self.blocks = nn.ModuleList(stacked(config, index) for index in range(config.depth))
        self.final_norm = rms_norm(config.width) if kind.final_norm else nn.Identity()
        self.head = nn.Linear(config.width, config.vocabulary)

    def forward(
        self,
        tokens: torch.Tensor,
        active_blocks: int | None = None,
        last_only: bool = False,
        row_keys: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits (rows, positions, vocabulary) in float32 for tokens (rows, positions) of any integer type.

        Blocks from `active_blocks` on (None: no block) are skipped: no compute, no gradient. The choice is made here,
        outside what is compiled, so that waking a group compiles nothing anew. `last_only` gives (rows, 1, vocabulary).
        `row_keys` (rows,) are the keys of dropout's masks; without them torch's generator draws the masks.
        """
        precision = (
            torch.autocast(tokens.device.type, torch.bfloat16, cache_enabled=False)
            if self.bf16
            else contextlib.nullcontext()
        )
        with precision:
            x = self.token_embedding(tokens.long())
            if self.position_embedding is not None:
                x = x + self.position_embedding(torch.arange(tokens.shape[1], device=tokens.device))
            for index, block in enumerate(self.blocks[:active_blocks]):
                keys = None if row_keys is None else block_keys(row_keys, index)
                x = activation_checkpointing.run(block, x, keys, self.config.checkpointing, self.compiled)
            return self.head(self.final_norm(x[:, -1:] if last_only else x)).float() * self.output_multiplier

    def insides(self, active_blocks: int | None = None) -> list[Block]:
        """The first `active_blocks` blocks (None: all) without their gates: all of one class, so one compiled graph
        and one kind of sharded unit serve them."""
        return [inside(block) for block in self.blocks[:active_blocks]]

    def compile_blocks(self) -> None:
        """Compile the inside of each block; gates and the choice of blocks stay outside.

        One graph a shape: with symbolic ones, a shorter input in evaluation would slow the training graph down.
        """
        self.compiled = True
        for block in self.insides():
            block.compile(dynamic=False)


def row_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Each row's summed cross-entropy in nats, (rows,), from (rows, positions, vocabulary) and (rows, positions).

    Negative targets, tokens that are only read, add nothing.
    """
    targets = targets.long().clamp(min=-1)
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none")
    return losses.view(targets.shape).sum(1)


def row_z_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Each row's sum over positions of (log sum exp logits)^2, (rows,), from (rows, positions, vocabulary).

    Positions whose target is negative add nothing. `optimizer.z_loss` scales this; it keeps the softmax's denominator
    near 1 (Chowdhery et al. 2022, section 5).
    """
    return (logits.logsumexp(-1).square() * (targets >= 0)).sum(1)
