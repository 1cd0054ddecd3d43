"""The noisy_set source: a list and its distinct values, with loss on both (arXiv 2609.39827, its Set).

Values are 1 to v = `values`, the separator S is v + 1. Values are drawn uniformly, one at a time, and written as long
as the list's tokens and its distinct values together stay at most T = `total`; the draw that would pass it is left out.
If one token is missing then, one of the distinct values, drawn uniformly, is written once more. Then come S and the
distinct values in order of first occurrence: T + 1 tokens in all. Samples follow each other, and the row's end cuts the
last one. All tokens are targets, so that most of the loss is the list itself, which nothing predicts: there it differs
from `lists` with `task: set`.

The published setting is 998 values and T = 2047, a row of 2048 integers, there written as decimal text.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Annotated, Literal

import numpy
import torch
from pydantic import Field

from upscale.randomness.streams import Purpose, Stream
from upscale.settings import Count
from upscale.sources.base import Problems, Source, SourceSettings, exceeds
from upscale.sources.tokens import check_vocabulary, token_dtype

if TYPE_CHECKING:
    from upscale.config import ModelConfig


class NoisySetSettings(SourceSettings):
    kind: Literal["noisy_set"]
    values: Count = 128
    """Different values; with 0, which is not used, and the separator they take two ids more."""
    total: Annotated[int, Field(ge=2)] = 511
    """Tokens of a list and its distinct values together; a sample has one more."""

    def problems(self, model: ModelConfig | None) -> Problems:
        if model and self.values + 2 > model.vocabulary:
            yield "values", f"{self.values} need {self.values + 2} tokens: {exceeds(model)}"

    def bits(self, length: int, vocabulary: int) -> numpy.ndarray:
        return numpy.resize(sample_bits(self.values, self.total), length)

    def build(self, vocabulary: int) -> NoisySetSource:
        return NoisySetSource(vocabulary=vocabulary, **self.arguments())


@cache
def sample_bits(values: int, total: int) -> numpy.ndarray:
    """Expected bits of each token of a sample, (total + 1,) float64, exact: the law of its distinct values is followed.

    With n tokens and d distinct values so far, a draw costs log2 of the values as long as n + d is at most T - 2; at
    T - 1 a seen value follows, each of them as likely as the others; at T the separator is certain.
    """
    most = min(values, total)
    distinct = numpy.arange(most + 1)
    law, bits = numpy.zeros(most + 1), numpy.zeros(total + 1)
    law[0] = 1
    for time in range(total):
        free, last = law * (time + distinct <= total - 2), law * (time + distinct == total - 1)
        bits[time] = free.sum() * math.log2(values) + (last[1:] * numpy.log2(distinct[1:])).sum()
        new = free * (values - distinct) / values
        law = free - new
        law[1:] += new[:-1]
    return bits


class NoisySetSource(Source):
    """Lists and their sets; reads neither conditions nor seeds."""

    def __init__(self, *, vocabulary: int, values: int = 128, total: int = 511) -> None:
        check_vocabulary(vocabulary)
        if not 1 <= values <= vocabulary - 2:
            raise ValueError(f"values is {values}; allowed: 1 to the vocabulary less two ({vocabulary - 2})")
        if total < 2:
            raise ValueError(f"total is {total}; allowed: 2 or more")
        self.vocabulary, self.values, self.total = vocabulary, values, total

    def write(self, stream: Stream, conditions: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """(L, rows, length) of the shape of `conditions`."""
        _, rows, length = conditions.shape
        count = -(-length // (self.total + 1))
        x = 1 + stream.integers(Purpose.LIST_VALUE, self.values, rows, count, self.total)
        place = torch.arange(self.total, device=stream.device)
        first = torch.full((*x.shape[:-1], self.values + 1), self.total, device=stream.device)
        first.scatter_reduce_(-1, x, place.expand_as(x), "amin")
        new = first.gather(-1, x) == place
        sums = 1 + place + new.cumsum(dim=-1)
        kept = (sums <= self.total).sum(dim=-1, keepdim=True)
        # The distinct values come first; there are as many as of the tokens that were kept.
        order = (place + self.total * ~new).sort(dim=-1).values % self.total
        answer = x.gather(-1, order)
        used = sums.gather(-1, kept - 1)
        distinct = used - kept
        again = (stream.bits(Purpose.LIST_FILL, rows * count).reshape(*x.shape[:-1], 1) * distinct) >> 32
        x = torch.where(place == kept, answer.gather(-1, again), x)
        end = kept + (used < self.total)
        place = torch.arange(self.total + 1, device=stream.device).expand(*x.shape[:-1], -1)
        behind = answer.gather(-1, (place - end - 1).clamp(min=0))
        before = torch.cat([x, answer[..., :1]], dim=-1)
        tokens = torch.where(place < end, before, torch.where(place == end, self.values + 1, behind))
        return tokens.flatten(2)[..., :length].to(token_dtype(self.vocabulary))
