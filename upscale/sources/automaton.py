"""The automaton source: random walks through random non-deterministic automata (`ndfa` in Bloem 2025's figure 6).

The paper only says "randomly generated non-deterministic automaton"; this is what the published code makes, since its
first commit. Every row has its own: states n and symbols m, each 1 + the number of successes before the first failure
at 0.9 (10 on average; m at most 256), the m symbols drawn from the whole vocabulary without replacement, an edge share
p ~ U(0, 1), each of the n^2 ordered pairs of states an edge with probability p, labelled with one of the m symbols. The
walk starts in state 0 and takes one of the state's edges, all equally likely, writing its label; a state without any
writes the first of the symbols and goes back to state 0.

`permute: false` takes the ids 0 to m - 1 for symbols instead, as this project did until its figure 6 of November 2026.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch

from upscale.randomness.streams import Purpose, Stream
from upscale.sources.base import Source, SourceSettings
from upscale.sources.tokens import check_vocabulary, renamed, token_dtype

if TYPE_CHECKING:
    from upscale.config import ModelConfig

SUCCESS = 0.9
MOST_SYMBOLS = 256


class AutomatonSettings(SourceSettings):
    kind: Literal["automaton"]
    permute: bool = True
    """true: each row's symbols are drawn from the whole vocabulary, as in the published code; false: the low ids."""

    def launches_many(self, model: ModelConfig) -> bool:
        """A state after another."""
        return True

    def build(self, vocabulary: int) -> AutomatonSource:
        return AutomatonSource(vocabulary=vocabulary, **self.arguments())


class AutomatonSource(Source):
    """A random automaton a row; reads neither conditions nor seeds.

    `permute` draws the symbols of each row from the whole vocabulary; without it they are the low ids.
    """

    def __init__(self, *, vocabulary: int, permute: bool = True) -> None:
        check_vocabulary(vocabulary)
        self.vocabulary, self.permute = vocabulary, permute

    def write(self, stream: Stream, conditions: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """(L, rows, length) of the shape of `conditions`. Waits for a GPU once, for the largest number of states."""
        lanes, rows, length = conditions.shape
        states = _geometric(stream, Purpose.AUTOMATON_STATES, rows)
        symbols = _geometric(stream, Purpose.AUTOMATON_SYMBOLS, rows).clamp_(max=min(MOST_SYMBOLS, self.vocabulary))
        most = int(states.max())
        pairs = _pair_numbers(most, stream.device)

        def of_pairs(purpose: Purpose) -> torch.Tensor:
            """A word for each ordered pair of states, (L, rows, most, most)."""
            words = stream.bits(purpose, most * most * rows).view(lanes, most * most, rows)
            return words[:, pairs].permute(0, 3, 1, 2)

        edge_share = stream.bits(Purpose.AUTOMATON_EDGE_SHARE, rows).view(lanes, rows, 1, 1)
        exists = torch.arange(most, device=stream.device) < states[..., None]
        edges = (of_pairs(Purpose.AUTOMATON_EDGE) < edge_share) & exists[..., None] & exists[..., None, :]
        labels = ((of_pairs(Purpose.AUTOMATON_LABEL) * symbols[..., None, None]) >> 32).flatten()
        # Entry j of a state's line tells how many edges lead to states up to j, so that the first one above k is the
        # end of edge k.
        lines = edges.cumsum(dim=-1).to(torch.int16).view(-1, most)
        first_line = torch.arange(lanes * rows, device=stream.device) * most
        words = stream.bits(Purpose.TOKEN, rows * length).reshape(-1, length).T.contiguous()
        tokens = torch.empty(length, lanes * rows, dtype=torch.int64, device=stream.device)
        state = torch.zeros_like(first_line)
        for time in range(length):
            line = first_line + state
            counts = lines[line]
            degree = counts[:, -1].long()
            follow = (counts <= ((words[time] * degree) >> 32)[:, None]).sum(dim=-1)
            dead = degree == 0
            state = torch.where(dead, 0, follow)
            tokens[time] = torch.where(dead, 0, labels[line * most + state])
        tokens = tokens.T.reshape(lanes, rows, length)
        if self.permute:
            tokens = renamed(tokens, stream, Purpose.PERMUTATION, self.vocabulary)
        return tokens.to(token_dtype(self.vocabulary))


def _geometric(stream: Stream, purpose: Purpose, rows: int) -> torch.Tensor:
    """1 + the number of successes, (L, rows) int64; 158 successes are the most that 24 bits can tell."""
    height = 1 - stream.uniform(purpose, rows).to(torch.float64)
    return height.log_().mul_(1 / math.log(SUCCESS)).floor_().to(torch.int64).add_(1)


def _pair_numbers(most: int, device: torch.device) -> torch.Tensor:
    """A number for each ordered pair of states, (most, most): those of n states are the first n^2, whatever `most` is.

    Thereby an automaton's words do not depend on the larger ones that share the call.
    """
    first, second = torch.meshgrid(*2 * [torch.arange(most, device=device)], indexing="ij")
    shell = torch.maximum(first, second)
    return shell**2 + torch.where(first == shell, second, shell + 1 + first)
