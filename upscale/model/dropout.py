"""Dropout whose masks come from keys: a function of (seed, step, row, block, site), not of the rank.

Then a run with dropout gives the same losses in any world. It costs a few integer operations per element, which is why
`model.dropout_keys` offers the framework's own masks, seeded per rank, as well.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

_MASK = 0xFFFFFFFF
_SITE = 0x5BD1E995
_WORDS = 2**16


def mix(words: torch.Tensor) -> torch.Tensor:
    """The finaliser of MurmurHash3 on int64 tensors of 32-bit words: every bit of the input moves half the output's."""
    words = words ^ (words >> 16)
    words = (words * 0x85EBCA6B) & _MASK
    words = words ^ (words >> 13)
    words = (words * 0xC2B2AE35) & _MASK
    return words ^ (words >> 16)


def block_keys(row_keys: torch.Tensor, block: int) -> torch.Tensor:
    """Keys (rows,) for one block from keys (rows,) int64 in [0, 2^32) of this step's rows."""
    return mix((row_keys + mix(torch.full_like(row_keys, block + 1))) & _MASK)


def keep_mask(keys: torch.Tensor, shape: torch.Size, probability: float) -> torch.Tensor:
    """Booleans (rows, positions, width), each True with 1 - probability, from keys (rows,)."""
    elements = torch.arange(shape[1] * shape[2], device=keys.device)
    words = mix((keys[:, None] + mix(elements)) & _MASK)
    return (words >= int(probability * 2**32)).view(shape)


def _dropped(x: torch.Tensor, probability: float) -> torch.Tensor:
    """x with elements zeroed and scaled, by masks from torch's generator.

    A CPU draws 64 bits for four elements, which takes a third of the time of torch's own coins; a probability is then a
    multiple of 2^-16, and the scale is that of the multiple.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, probability)
    dropped = min(round(probability * _WORDS), _WORDS - 1)
    if not dropped:
        return x
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    keep = words.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - _WORDS // 2
    return x * keep.to(x.dtype).mul_(_WORDS / (_WORDS - dropped))


class Dropout(nn.Module):
    """Zeroes elements with a probability and scales the rest by 1 / (1 - probability), in training only."""

    def __init__(self, probability: float, site: int):
        super().__init__()
        self.probability, self.site = probability, site

    def forward(self, x: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        """x (rows, positions, width); keys (rows,) of this block, None for masks from torch's own generator."""
        if keys is None or not self.training or not self.probability:
            return _dropped(x, self.probability) if self.training else x
        keep = keep_mask(keys ^ (self.site * _SITE & _MASK), x.shape, self.probability)
        return x * keep / (1 - self.probability)
