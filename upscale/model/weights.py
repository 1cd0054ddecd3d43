"""Memory for a model that has only shapes, and the random numbers of its parameters, any part of them by itself.

A parameter's numbers are a function of the seed, its name and an element's place in it. So a rank draws the elements
that it holds and no others, and they are the same under every engine, in every world and in any order.
"""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from upscale.randomness.streams import Purpose, Stream

PAGE = 1 << 16
"""Elements that one (lane, round) pair of a parameter's stream draws; part of what a seed means."""


def pages_per_pass(device: torch.device) -> int:
    """Few launches and 60 MB of temporary memory on a GPU; what stays in a core's cache on a CPU."""
    return 1 if device.type == "cpu" else 16


def materialize(module: nn.Module, device: torch.device) -> nn.Module:
    """The module on a device: parameters that have only a shape get memory, of no particular content; everything else
    is moved there."""
    # As Module.to_empty, which would empty the buffers too.
    return module._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t.to(device))


@torch.no_grad()
def draw_normal(out: torch.Tensor, seed: int, name: str, size: int, offset: int) -> None:
    """Fill `out`, flat float32, with elements [offset, offset + n) of the standard normal numbers of a parameter.

    `size` is how many the whole parameter has. Pages are drawn whole, so that a part has the very bits of the whole.
    """
    key = int.from_bytes(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest(), "little")
    end = offset + len(out)
    last = -(-end // PAGE)
    for first in range(offset // PAGE, last, pages_per_pass(out.device)):
        pages = torch.arange(first, min(first + pages_per_pass(out.device), last))
        begin = first * PAGE
        stream = Stream(key, pages, torch.zeros_like(pages), out.device)
        drawn = stream.normal(Purpose.PARAMETER, min(PAGE, size - begin)).view(-1)
        low, high = max(begin, offset), min(begin + len(drawn), end)
        out[low - offset : high - offset] = drawn[low - begin : high - begin]
