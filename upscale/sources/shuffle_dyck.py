"""The shuffle-Dyck source: brackets of `brackets` types that close in any order, several Dyck languages interleaved.

The state of a row is how many brackets of each type are open. If none is, one opens; if `depth` are, one closes; else
one opens with probability `open_probability`, else one closes. The type that opens is drawn uniformly; the type that
closes uniformly among those that have an open bracket, whether it has one or many. The row's end cuts everything.
Opening brackets are tokens 0 to brackets - 1, the one that closes token t is brackets + t. All tokens are targets.

| variant | brackets | depth | open_probability |
|---|---|---|---|
| arXiv 2601.21725, code; arXiv 2502.19249, paper | 64 | 16 | 0.5 |
| arXiv 2502.19249, code | 64 | 8 | 0.51 |
| arXiv 2609.39827 (as decimal text there) | 64 | 8 | 0.5 |
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy
import torch

from upscale.randomness.streams import Purpose, Stream
from upscale.settings import Count, Share
from upscale.sources.base import Problems, Source, SourceSettings, binary_entropy, exceeds
from upscale.sources.tokens import check_vocabulary, token_dtype

if TYPE_CHECKING:
    from upscale.config import ModelConfig

DEEPEST_KNOWN = 24
"""Largest `depth` whose optimum is computed: its 7 346 states are few, and their number grows by a fifth a bracket."""


class ShuffleDyckSettings(SourceSettings):
    kind: Literal["shuffle_dyck"]
    brackets: Count = 64
    """Types of brackets; each takes two tokens."""
    depth: Count = 16
    """Brackets that may be open at once, of all types together."""
    open_probability: Share = 0.5
    """How often a bracket opens where one may also close."""

    def problems(self, model: ModelConfig | None) -> Problems:
        if model and 2 * self.brackets > model.vocabulary:
            yield "brackets", f"{self.brackets} need {2 * self.brackets} tokens: {exceeds(model)}"

    def bits(self, length: int, vocabulary: int) -> numpy.ndarray | None:
        if self.depth > DEEPEST_KNOWN:
            return None
        return expected_bits(length, self.brackets, self.depth, self.open_probability)

    def launches_many(self, model: ModelConfig) -> bool:
        """A bracket after another."""
        return True

    def build(self, vocabulary: int) -> ShuffleDyckSource:
        return ShuffleDyckSource(vocabulary=vocabulary, **self.arguments())


class ShuffleDyckSource(Source):
    """Interleaved brackets; reads neither conditions nor seeds."""

    def __init__(self, *, vocabulary: int, brackets: int = 64, depth: int = 16, open_probability: float = 0.5) -> None:
        check_vocabulary(vocabulary)
        if not 1 <= brackets <= vocabulary // 2:
            raise ValueError(f"brackets is {brackets}; allowed: 1 to half of the vocabulary ({vocabulary // 2})")
        if depth < 1:
            raise ValueError(f"depth is {depth}; allowed: 1 or more")
        if not 0 <= open_probability <= 1:
            raise ValueError(f"open_probability is {open_probability}; allowed: 0 to 1")
        self.vocabulary, self.brackets = vocabulary, brackets
        self.depth, self.open_probability = depth, open_probability

    def write(self, stream: Stream, conditions: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """(L, rows, length) of the shape of `conditions`."""
        lanes, rows, length = conditions.shape
        wishes = stream.uniform(Purpose.DYCK_OPEN, rows, length) < self.open_probability
        types = stream.integers(Purpose.DYCK_TYPE, self.brackets, rows, length)
        words = stream.bits(Purpose.SHUFFLE_CLOSE, rows * length)
        wishes, types, words = (each.reshape(-1, length).T.contiguous() for each in (wishes, types, words))
        counts = torch.zeros(lanes * rows, self.brackets, dtype=torch.int16, device=stream.device)
        depth = torch.zeros(lanes * rows, dtype=torch.int64, device=stream.device)
        tokens = torch.empty_like(types)
        for time in range(length):
            opens = (depth == 0) | (wishes[time] & (depth < self.depth))
            # The open types so far, of which number k is the first place that reaches k + 1.
            ranks = (counts > 0).cumsum(dim=1)
            turn = 1 + ((words[time] * ranks[:, -1]) >> 32)
            closing = torch.searchsorted(ranks, turn[:, None])[:, 0]
            kind = torch.where(opens, types[time], closing)
            tokens[time] = kind + self.brackets * ~opens
            change = 2 * opens.to(torch.int64) - 1
            counts.scatter_add_(1, kind[:, None], change[:, None].to(torch.int16))
            depth += change
        return tokens.T.reshape(lanes, rows, length).to(token_dtype(self.vocabulary))


@cache
def expected_bits(length: int, brackets: int, depth: int, open_probability: float) -> numpy.ndarray:
    """Expected bits of each token, (length,) float64, exact.

    Types are exchangeable, so a state is how many of them have 1, 2, ... open brackets: a partition of the depth. The
    law over states is followed token by token.
    """
    states: list[tuple[int, ...]] = [()]
    sources, targets, shares, costs = [], [], [], []
    places: dict[tuple[int, ...], int] = {(): 0}
    for here, state in enumerate(states):  # grows while it is walked
        opening = 1.0 if not state else 0.0 if sum(state) == depth else open_probability
        closing = 1.0 - opening
        costs.append(binary_entropy(opening) + opening * math.log2(brackets))
        costs[-1] += closing * math.log2(len(state)) if state else 0.0
        for share, after in _steps(state, brackets, opening, closing):
            if share:
                if after not in places:
                    places[after] = len(states)
                    states.append(after)
                sources.append(here)
                targets.append(places[after])
                shares.append(share)
    law: numpy.ndarray = numpy.zeros(len(states))
    law[0] = 1
    bits = numpy.zeros(length)
    for time in range(length):
        bits[time] = law @ costs
        law = numpy.bincount(targets, law[sources] * shares, len(states))
    return bits


def _steps(
    state: tuple[int, ...], brackets: int, opening: float, closing: float
) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Each next state with its probability; a state is the open brackets of its types, descending."""
    if len(state) < brackets:
        yield opening * (brackets - len(state)) / brackets, (*state, 1)
    for size in set(state):
        place, same = state.index(size), state.count(size)
        yield opening * same / brackets, (*state[:place], size + 1, *state[place + 1 :])
        last = place + same - 1
        smaller = (size - 1,) if size > 1 else ()
        yield closing * same / len(state), (*state[:last], *smaller, *state[last + 1 :])
