"""The uniform source: independent uniform tokens, the control that teaches nothing."""

from __future__ import annotations

import math
from typing import Literal

import torch

from upscale.randomness.streams import Purpose, Stream
from upscale.sources.base import Source, SourceSettings
from upscale.sources.tokens import check_vocabulary, token_dtype


class UniformSettings(SourceSettings):
    kind: Literal["uniform"]

    def bits(self, length: int, vocabulary: int) -> list[float]:
        return [math.log2(vocabulary)] * length

    def build(self, vocabulary: int) -> UniformSource:
        return UniformSource(vocabulary=vocabulary, **self.arguments())


class UniformSource(Source):
    """Writes noise; reads neither conditions nor seeds."""

    def __init__(self, *, vocabulary: int) -> None:
        check_vocabulary(vocabulary)
        self.vocabulary = vocabulary

    def write(self, stream: Stream, conditions: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """(L, rows, length) of the shape of `conditions`."""
        _, rows, length = conditions.shape
        return stream.integers(Purpose.UNIFORM_ROW, self.vocabulary, rows, length).to(token_dtype(self.vocabulary))
