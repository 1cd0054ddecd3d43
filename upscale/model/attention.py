"""Causal multi-head self-attention, with learned positions outside it or rotary ones inside."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from upscale.config import ModelConfig

ROTARY_BASE = 10_000
NORM_EPSILON = 1e-5
POSITIONS_BY_PRODUCTS = 8
"""Most positions, as a multiple of the head size, for which a CPU computes attention by products of its own: their
probabilities, which are kept, then take at most half of what a block keeps beside them."""


def rms_norm(size: int, gain: bool = True) -> nn.RMSNorm:
    """A norm by the root mean square of the last dimension, of this size (Zhang and Sennrich 2019)."""
    return nn.RMSNorm(size, eps=NORM_EPSILON, elementwise_affine=gain)


class Attention(nn.Module):
    """Attention of `heads` heads over (rows, positions, width).

    Logits are scaled by 1/k, k the head size (Yang et al. 2022, section 4), but by 1/sqrt(k) where `norms` are given
    for queries and keys: normalised ones have length sqrt(k), so that 1/k would leave every logit below 1.
    """

    def __init__(self, width: int, heads: int, norms: tuple[nn.Module, nn.Module] | None, bias: bool):
        super().__init__()
        self.heads, self.head_size = heads, width // heads
        self.project_in = nn.Linear(width, 3 * width, bias=False)
        self.project_out = nn.Linear(width, width, bias=bias)
        self.query_norm, self.key_norm = norms or (nn.Identity(), nn.Identity())
        self.scale = self.head_size**-0.5 if norms else 1 / self.head_size

    @property
    def ends(self) -> tuple[nn.Module, nn.Module]:
        """The last modules that queries and keys go through before they are multiplied."""
        return self.query_norm, self.key_norm

    def prepared(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys (rows, heads, positions, head size) as they are multiplied."""
        return self.query_norm(query), self.key_norm(key)

    def queries_keys_values(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values (rows, heads, positions, head size), all of one type."""
        rows, positions, _ = x.shape
        query, key, value = (
            self.project_in(x).view(rows, positions, 3, self.heads, self.head_size).permute(2, 0, 3, 1, 4)
        )
        query, key = self.prepared(query, key)
        return query.to(value.dtype), key.to(value.dtype), value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.queries_keys_values(x)
        mixed = causal_attention(query, key, value, self.scale)
        return self.project_out(mixed.transpose(1, 2).reshape(x.shape))


def causal_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Values (rows, heads, positions, head size) mixed by the softmax of `scale` times queries by keys, none later.

    torch's fused attention, but products and a softmax for short rows on a CPU, where the fused one takes 1.3 times as
    long in float32 and 3 times as long in bfloat16 (heads of 128, 512 positions; docs/results.md, Speed of a step).
    """
    positions, size = query.shape[-2:]
    fused = query.device.type != "cpu" or positions > POSITIONS_BY_PRODUCTS * size or torch.compiler.is_compiling()
    if fused:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    return _attention_by_products(query, key, value, scale)


def _attention_by_products(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """As `causal_attention`. The first half of the positions does not see the second, so a quarter is left out."""
    positions = query.shape[-2]
    flat_query, flat_key, flat_value = (part.flatten(0, 1) for part in (query, key, value))
    later = torch.full((positions, positions), -math.inf, dtype=query.dtype).triu_(1)
    mixed, half = [], math.ceil(positions / 2)
    for begin in range(0, positions, half):
        end = min(begin + half, positions)
        seen = flat_key[:, :end].transpose(1, 2)
        logits = torch.baddbmm(later[begin:end, :end], flat_query[:, begin:end], seen, alpha=scale)
        mixed.append(torch.bmm(logits.softmax(-1), flat_value[:, :end]))
    return torch.cat(mixed, 1).view(query.shape)


class Rotation(nn.Module):
    """Rotary positions (Su et al. 2021): turns each pair of numbers i and i + k/2 of a head by position / 10000^(2i/k).

    Products of queries and keys then depend on the distance between their positions only.
    """

    def __init__(self, context: int, head_size: int):
        super().__init__()
        # With numbers also where the model has only shapes: they follow from the config, and nothing fills them later.
        positions, pairs = torch.arange(context, device="cpu"), torch.arange(0, head_size, 2, device="cpu")
        angles = positions[:, None] / ROTARY_BASE ** (pairs / head_size)
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (rows, heads, positions, head size), turned."""
        cosine, sine = self.cosine[: x.shape[2]], self.sine[: x.shape[2]]
        first, second = x.chunk(2, -1)
        return torch.cat([first * cosine - second * sine, first * sine + second * cosine], -1)


class RotaryAttention(Attention):
    """Attention without biases whose queries and keys are normalised, if they are, and turned in float32."""

    def __init__(self, width: int, heads: int, norms: tuple[nn.Module, nn.Module] | None, context: int):
        super().__init__(width, heads, norms, bias=False)
        self.query_rotation, self.key_rotation = (Rotation(context, self.head_size) for _ in range(2))

    @property
    def ends(self) -> tuple[nn.Module, nn.Module]:
        return self.query_rotation, self.key_rotation

    def prepared(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        query, key = super().prepared(query.float(), key.float())
        return self.query_rotation(query), self.key_rotation(key)


def rotary_problems(model: ModelConfig, heads: int) -> Iterator[tuple[str, str]]:
    """What is impossible with rotary positions, as (key, message)."""
    size = model.width // heads
    if size % 2:
        yield (
            "model.heads",
            f"{heads} heads of size {size} at width {model.width}: model.block = {model.block} turns pairs of numbers, "
            "so a head's size must be even",
        )
