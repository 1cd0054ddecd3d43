"""Perplexity and bits per byte by their definition, token after token."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch


@torch.no_grad()
def measure(
    model: Callable[[torch.Tensor], torch.Tensor], tokens: list[int], context: int, text: bytes
) -> tuple[float, float, float]:
    """Bits per byte of `text`, perplexity, bits per token.

    The text's tokens are cut into rows that share their end with the next one's begin; of each token the model is shown
    no more than those before it in its row.
    """
    bits = []
    for start in range(0, len(tokens) - context, context):
        row = tokens[start : start + context + 1]
        for place in range(1, len(row)):
            logits = model(torch.tensor([row[:place]]))[0, -1].double()
            bits.append((logits.logsumexp(0) - logits[row[place]]).item() / math.log(2))
    mean = sum(bits) / len(bits)
    return mean * len(tokens) / len(text), 2**mean, mean
