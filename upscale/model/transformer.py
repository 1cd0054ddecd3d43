"""The byte-level transformer of the paper (section 6.1): post-norm blocks, all but the first few progressive."""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import nn

from upscale.config import ModelConfig
from upscale.model import activation_checkpointing
from upscale.model.dropout import Dropout, block_keys


class Attention(nn.Module):
    """Causal multi-head self-attention with logits scaled by 1/k, k the head size (Yang et al. 2022, section 4)."""

    def __init__(self, width: int, heads: int, qk_norm: bool):
        super().__init__()
        self.heads, self.head_size = heads, width // heads
        self.project_in = nn.Linear(width, 3 * width, bias=False)
        self.project_out = nn.Linear(width, width)
        self.query_norm = nn.LayerNorm(self.head_size, bias=False) if qk_norm else nn.Identity()
        self.key_norm = nn.LayerNorm(self.head_size, bias=False) if qk_norm else nn.Identity()
        # Normalised queries and keys have length sqrt(k), so that 1/k would leave every logit below 1.
        self.scale = self.head_size**-0.5 if qk_norm else 1 / self.head_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, positions, width = x.shape
        query, key, value = (
            self.project_in(x).view(rows, positions, 3, self.heads, self.head_size).permute(2, 0, 3, 1, 4)
        )
        query, key = self.query_norm(query).to(value.dtype), self.key_norm(key).to(value.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=self.scale)
        return self.project_out(mixed.transpose(1, 2).reshape(rows, positions, width))


class Block(nn.Module):
    """x = dropout(LN(x + attention(x))); x = dropout(LN(x + feedforward(x))), over (rows, positions, width)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention = Attention(config.width, config.heads, config.qk_norm)
        self.attention_norm = nn.LayerNorm(config.width)
        self.feedforward_in = nn.Linear(config.width, 4 * config.width)
        self.feedforward_out = nn.Linear(4 * config.width, config.width)
        self.feedforward_norm = nn.LayerNorm(config.width)
        self.attention_dropout = Dropout(config.dropout, site=0)
        self.feedforward_dropout = Dropout(config.dropout, site=1)

    def forward(self, x: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        x = self.attention_dropout(self.attention_norm(x + self.attention(x)), keys)
        fed = self.feedforward_out(F.relu(self.feedforward_in(x)))
        return self.feedforward_dropout(self.feedforward_norm(x + fed), keys)


class ProgressiveBlock(nn.Module):
    """x + a * Block(x) with a learned scalar a = 0, so that taking part for the first time changes nothing."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.block = Block(config)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        return x + self.gate * self.block(x, keys)


class Transformer(nn.Module):
    """Bytes in, logits of the next byte out.

    The precision belongs to the model and not to an engine: weights stay in float32 under every engine, and with
    `bf16` the matrix products run in bfloat16 by autocast, as the paper's did in float16.
    """

    def __init__(self, config: ModelConfig, output_multiplier: float, bf16: bool = False):
        super().__init__()
        self.config, self.output_multiplier, self.bf16 = config, output_multiplier, bf16
        self.compiled = False
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.position_embedding = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(
            Block(config) if index < config.plain_blocks else ProgressiveBlock(config) for index in range(config.depth)
        )
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
            positions = torch.arange(tokens.shape[1], device=tokens.device)
            x = self.token_embedding(tokens.long()) + self.position_embedding(positions)
            for index, block in enumerate(self.blocks[:active_blocks]):
                keys = None if row_keys is None else block_keys(row_keys, index)
                x = activation_checkpointing.run(block, x, keys, self.config.checkpointing, self.compiled)
            return self.head(x[:, -1:] if last_only else x).float() * self.output_multiplier

    def insides(self, active_blocks: int | None = None) -> list[Block]:
        """The first `active_blocks` blocks (None: all) without their gates: all of one class, so one compiled graph
        and one kind of sharded unit serve them."""
        return [block.block if isinstance(block, ProgressiveBlock) else block for block in self.blocks[:active_blocks]]

    def compile_blocks(self) -> None:
        """Compile the inside of each block; gates and the choice of blocks stay outside.

        One graph a shape: with symbolic ones, a shorter input in evaluation would slow the training graph down.
        """
        self.compiled = True
        for block in self.insides():
            block.compile(dynamic=False)


def row_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Each row's summed cross-entropy in nats, (rows,), from (rows, positions, vocabulary) and (rows, positions)."""
    losses = F.cross_entropy(logits.flatten(0, 1), targets.long().flatten(), reduction="none")
    return losses.view(targets.shape).sum(1)


def row_z_losses(logits: torch.Tensor) -> torch.Tensor:
    """Each row's sum over positions of (log sum exp logits)^2, (rows,), from (rows, positions, vocabulary).

    What `optimizer.z_loss` scales; it keeps the softmax's denominator near 1 (Chowdhery et al. 2022, section 5).
    """
    return logits.logsumexp(-1).square().sum(1)
