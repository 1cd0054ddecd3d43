"""Control data: training rows that keep only some statistics of the rows that were written.

Where a model learns as much from them, it was the statistics that taught it, and no structure (`data.control`).
"""

from __future__ import annotations

import torch

from upscale.config.protocols import Control
from upscale.randomness.streams import Purpose, Stream
from upscale.sources.tokens import ids


def controlled(control: Control, rows: torch.Tensor, stream: Stream) -> torch.Tensor:
    """(L, rows, length) tokens of the same type as `rows`; which places are targets stays as it is.

    shuffled: each row's tokens in random order. pairs: a random walk over each row's tokens: after a token comes what
    follows one of its places in the row, drawn uniformly; after the last place comes the first. So a token, and two
    side by side, are as likely as in that ring.
    """
    if control == "none":
        return rows
    tokens = ids(rows)
    found = tokens.gather(-1, (_shuffled if control == "shuffled" else _walk)(tokens, stream))
    return torch.where(rows < 0, ~found, found) if rows.dtype != torch.uint8 else found


def _shuffled(tokens: torch.Tensor, stream: Stream) -> torch.Tensor:
    """A random permutation of each row's places; the place is the key's low half, so that no two keys are equal."""
    words = stream.bits(Purpose.CONTROL_ORDER, tokens[0].numel()).view(tokens.shape)
    places = torch.arange(tokens.shape[-1], device=tokens.device)
    return ((words << 31) | places).sort(dim=-1).values & ((1 << 31) - 1)


def _walk(tokens: torch.Tensor, stream: Stream) -> torch.Tensor:
    """The places that a random walk over each row passes, (L, rows, length) int64."""
    length = tokens.shape[-1]
    ordered, places = tokens.sort(dim=-1, stable=True)  # the places of one token lie side by side
    first = torch.searchsorted(ordered, tokens.contiguous())
    count = torch.searchsorted(ordered, tokens.contiguous(), right=True) - first
    words = stream.bits(Purpose.CONTROL_STEP, tokens[0].numel()).view(tokens.shape)
    at = (words[..., :1] * length) >> 32
    passed = [at]
    for step in range(1, length):
        alike = first.gather(-1, at) + ((words[..., step : step + 1] * count.gather(-1, at)) >> 32)
        at = (places.gather(-1, alike) + 1) % length
        passed.append(at)
    return torch.cat(passed, dim=-1)
