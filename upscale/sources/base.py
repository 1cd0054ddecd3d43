"""What every source is made of: the settings that name it in a config, and the program that writes its rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field

from upscale.randomness.streams import Stream
from upscale.settings import NotNegative, Section

if TYPE_CHECKING:
    import numpy

    from upscale.config import ModelConfig

Range = Annotated[list[NotNegative], Field(min_length=2, max_length=2)]
Problems = Iterator[tuple[str, str]]


class Source:
    """Writes rows of fresh random programs; the lanes ask nothing else of it."""

    seed_tokens: int = 0
    """How many tokens of a row are its seed; 0 for a source that needs none."""

    def write(self, stream: Stream, conditions: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """New rows, (L, rows, length), one program for each of the stream's L pairs (lane, round).

        `conditions` is (L, rows, length); `seeds` is (L, rows, seed_tokens), and a source with seeds begins each row
        with its own. Tokens are uint8, or int16 where the vocabulary exceeds 256 or where some are no targets (see
        upscale/sources/tokens.py).
        All that is random comes from the stream, and a pair's rows do not depend on which pairs share the call.
        """
        raise NotImplementedError

    def method(self, device: torch.device) -> str:
        """How rows are computed there: two methods round differently, and so write other rows; exact: integers only."""
        return "exact"


class SourceSettings(Section):
    """One entry of `data.sources`. Every subclass in this room with a field `kind` is one."""

    if TYPE_CHECKING:
        kind: str

    measured: ClassVar[dict[str, dict[str, Any]]] = {"": {}}
    """What `upscale bench --sources` measures: keys to give, by what distinguishes them in the table."""

    weight: NotNegative = 1.0
    """Relative frequency among the sources; 0: never."""

    @property
    def masked(self) -> bool:
        """Whether some of the source's tokens are no targets; each row has one all the same, behind its first token.

        Settings that could write a row without any are refused in `problems`, so that no batch of any mixture lacks
        targets, on whichever rank.
        """
        return False

    def bits(self, length: int, vocabulary: int) -> Sequence[float] | numpy.ndarray | None:
        """Expected bits of each token of a row given those before it, for who knows the source; None: not known."""
        return None

    def optimum(self, model: ModelConfig, first_target: int) -> float | None:
        """The least bits per target that a model can reach, mean over a row's targets; None: not known."""
        bits = self.bits(model.context + 1, model.vocabulary)
        return None if bits is None else math.fsum(bits[first_target:]) / (model.context + 1 - first_target)

    def resolved(self, model: ModelConfig) -> SourceSettings:
        """The same entry with every `auto` replaced."""
        return self

    def problems(self, model: ModelConfig | None) -> Problems:
        """Impossible values as (key, message); `model` is None where that section is itself in error."""
        yield from ()

    def launches_many(self, model: ModelConfig) -> bool:
        """Whether a GPU writes its rows by thousands of small kernels a draw, which would keep the host from launching
        the training's: with `data.ahead: auto`, processes on the CPU then write them."""
        return False

    def build(self, vocabulary: int) -> Source:
        """The source that this entry describes, for token ids 0 to vocabulary - 1."""
        raise NotImplementedError

    def arguments(self) -> dict[str, Any]:
        """The fields that describe the source itself, as keyword arguments."""
        return {name: value for name, value in vars(self).items() if name not in ("kind", "weight")}


def binary_entropy(probability: float) -> float:
    """Bits of a draw with two outcomes."""
    return -math.fsum(share * math.log2(share) for share in (probability, 1 - probability) if share)


def exceeds(model: ModelConfig) -> str:
    """Half a sentence for what needs more token ids than the model has."""
    return f"more than model.vocabulary = {model.vocabulary}"
