"""Sources: random programs that write token rows. A kind is a file in this folder and a line in `KINDS`."""

from collections.abc import Callable
from typing import Any, Protocol

import torch

from upscale.randomness.streams import Stream
from upscale.sources.automaton import AutomatonSource
from upscale.sources.dyck import DyckSource
from upscale.sources.nca import NCASource
from upscale.sources.pointwise import PointwiseSource
from upscale.sources.recurrent import GRUSource, LSTMSource
from upscale.sources.transformer import TransformerSource
from upscale.sources.uniform import UniformSource
from upscale.sources.utm import UTMSource


class Source(Protocol):
    """What the lanes ask of a source."""

    seed_tokens: int
    """How many tokens of a row are its seed; 0 for a source that needs none."""

    def write(self, stream: Stream, conditions: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """New rows, (L, rows, length), of fresh random programs, for each of the stream's L pairs (lane, round).

        `conditions` is (L, rows, length); `seeds` is (L, rows, seed_tokens), and a source with seeds begins each row
        with its own. Tokens are uint8, or int16 where the vocabulary exceeds 256.
        All that is random comes from the stream, and a pair's rows do not depend on which pairs share the call.
        """
        ...


KINDS: dict[str, Callable[..., Source]] = {
    "lstm": LSTMSource,
    "gru": GRUSource,
    "transformer": TransformerSource,
    "utm": UTMSource,
    "nca": NCASource,
    "automaton": AutomatonSource,
    "pointwise": PointwiseSource,
    "dyck": DyckSource,
    "uniform": UniformSource,
}


def build(settings: Any, vocabulary: int) -> Source:
    """The source that one entry of `data.sources` describes.

    All attributes of `settings` but `kind` and `weight` are handed to the kind's class as keyword arguments.
    """
    if settings.kind not in KINDS:
        raise ValueError(f"data.sources: kind is {settings.kind!r}; allowed: {', '.join(KINDS)}")
    arguments = {name: value for name, value in vars(settings).items() if name not in ("kind", "weight")}
    return KINDS[settings.kind](vocabulary=vocabulary, **arguments)
