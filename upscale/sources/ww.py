"""The ww source: random words, each written twice without a separator (Hu et al., arXiv 2502.19249).

A word's length is uniform from `shortest` to `longest`, its symbols are uniform from 0 to symbols - 1. Words follow
each other, w w w' w' ..., and the row's end cuts the last one. The published code has 64 symbols, 10 to 510 and rows of
2048 tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from upscale.randomness.streams import Purpose, Stream
from upscale.settings import Count
from upscale.sources.base import Problems, Source, SourceSettings, exceeds
from upscale.sources.tokens import check_vocabulary, token_dtype

if TYPE_CHECKING:
    from upscale.config import ModelConfig


class WWSettings(SourceSettings):
    kind: Literal["ww"]
    symbols: Count = 64
    """Different symbols of a word."""
    shortest: Count = 10
    """Symbols of the shortest word."""
    longest: Count = 510
    """Symbols of the longest word."""

    def problems(self, model: ModelConfig | None) -> Problems:
        if self.shortest > self.longest:
            yield "shortest", f"{self.shortest} is above longest = {self.longest}"
        if model and self.symbols > model.vocabulary:
            yield "symbols", f"{self.symbols} is {exceeds(model)}"

    def build(self, vocabulary: int) -> WWSource:
        return WWSource(vocabulary=vocabulary, **self.arguments())


class WWSource(Source):
    """Doubled words; reads neither conditions nor seeds."""

    def __init__(self, *, vocabulary: int, symbols: int = 64, shortest: int = 10, longest: int = 510) -> None:
        check_vocabulary(vocabulary)
        if not 1 <= symbols <= vocabulary:
            raise ValueError(f"symbols is {symbols}; allowed: 1 to the vocabulary ({vocabulary})")
        if not 1 <= shortest <= longest:
            raise ValueError(f"shortest is {shortest}, longest {longest}; allowed: 1 or more, shortest to longest")
        self.vocabulary, self.symbols, self.shortest, self.longest = vocabulary, symbols, shortest, longest

    def write(self, stream: Stream, conditions: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """(L, rows, length) of the shape of `conditions`."""
        _, rows, length = conditions.shape
        count = -(-length // (2 * self.shortest))
        lengths = self.shortest + stream.integers(Purpose.WW_LENGTH, self.longest - self.shortest + 1, rows, count)
        symbols = stream.integers(Purpose.WW_SYMBOL, self.symbols, rows, length)
        ends = (2 * lengths).cumsum(dim=-1)
        place = torch.arange(length, device=stream.device).expand_as(symbols).contiguous()
        word = torch.searchsorted(ends, place, right=True)
        size = lengths.gather(-1, word)
        second = place >= ends.gather(-1, word) - size
        return symbols.gather(-1, place - size * second).to(token_dtype(self.vocabulary))
