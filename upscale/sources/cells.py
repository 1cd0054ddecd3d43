"""The cells source: elementary cellular automata, one orbit a row.

The state is a ring of `cells` cells of 0 and 1, at first 1 with probability 1/2 each. In a step a cell becomes bit
4 * left + 2 * itself + right of the rule's number (Wolfram's code). A row has successive states, the first one after
`burn_in` steps; of each the first `width` cells, `cells_per_token` cells to a token, the first of them the least
significant bit, then token 2^cells_per_token if `separator`. The row's end cuts the last state. All tokens are targets.
`rule: random` draws one of the 256 rules for each row.

The published one ("intelligence at the edge of chaos", arXiv 2410.02536) is no token source: a ring of 1000 cells, of
which a window of 100 is one real-valued vector a step. `cells: 1000, width: 100` shows those states as tokens; there
the two cells at the window's ends depend on unseen neighbours, and no optimum is given. The layout that arXiv
2601.21725 used was not released.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field

from upscale.randomness.streams import Purpose, Stream
from upscale.settings import Count, CountOrZero
from upscale.sources.base import Problems, Source, SourceSettings, exceeds
from upscale.sources.tokens import check_vocabulary, token_dtype

if TYPE_CHECKING:
    from upscale.config import ModelConfig

RULES = 256


class CellsSettings(SourceSettings):
    kind: Literal["cells"]
    rule: Annotated[int, Field(ge=0, lt=RULES)] | Literal["random"] = 110
    """Wolfram's code of the rule; random: one of the 256 for each row."""
    cells: Annotated[int, Field(ge=3)] = 64
    """Cells of the ring."""
    width: Count | None = None
    """Cells of a state that are shown; null: all."""
    cells_per_token: Annotated[int, Field(ge=1, le=14)] = 1
    """Neighbouring cells that are one token; a divisor of the cells shown."""
    separator: bool = True
    """Whether a token of its own follows each state."""
    burn_in: CountOrZero = 0
    """Steps before the first state that is shown."""

    def problems(self, model: ModelConfig | None) -> Problems:
        shown = self.width or self.cells
        tokens = 2**self.cells_per_token + self.separator
        if shown > self.cells:
            yield "width", f"{shown} is more than there are: cells = {self.cells}"
        if shown % self.cells_per_token:
            yield "cells_per_token", f"{self.cells_per_token} does not divide the {shown} cells that are shown"
        if model and tokens > model.vocabulary:
            yield "cells_per_token", f"{self.cells_per_token} need {tokens} tokens: {exceeds(model)}"

    def bits(self, length: int, vocabulary: int) -> list[float] | None:
        """The first state is free, everything else follows; known for one rule, a whole ring and no burn-in."""
        if self.rule == "random" or self.burn_in or (self.width or self.cells) < self.cells:
            return None
        free = self.cells // self.cells_per_token
        return [self.cells_per_token * float(place < free) for place in range(length)]

    def build(self, vocabulary: int) -> CellsSource:
        return CellsSource(vocabulary=vocabulary, **self.arguments())


class CellsSource(Source):
    """Orbits of elementary cellular automata; reads neither conditions nor seeds."""

    def __init__(
        self,
        *,
        vocabulary: int,
        rule: int | str = 110,
        cells: int = 64,
        width: int | None = None,
        cells_per_token: int = 1,
        separator: bool = True,
        burn_in: int = 0,
    ) -> None:
        check_vocabulary(vocabulary)
        shown = width or cells
        if rule != "random" and not (isinstance(rule, int) and 0 <= rule < RULES):
            raise ValueError(f"rule is {rule!r}; allowed: 0 to {RULES - 1}, or random")
        if cells < 3:
            raise ValueError(f"cells is {cells}; allowed: 3 or more")
        if not 1 <= shown <= cells:
            raise ValueError(f"width is {width}; allowed: 1 to cells ({cells})")
        if not 1 <= cells_per_token <= 14 or shown % cells_per_token:
            raise ValueError(f"cells_per_token is {cells_per_token}; allowed: a divisor of {shown}, at most 14")
        if 2**cells_per_token + separator > vocabulary:
            raise ValueError(f"vocabulary is {vocabulary}; allowed: at least {2**cells_per_token + separator}")
        self.vocabulary, self.rule, self.cells, self.shown = vocabulary, rule, cells, shown
        self.cells_per_token, self.separator, self.burn_in = cells_per_token, separator, burn_in

    def write(self, stream: Stream, conditions: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """(L, rows, length) of the shape of `conditions`."""
        _, rows, length = conditions.shape
        state = stream.integers(Purpose.CELLS_START, 2, rows, self.cells)
        rule = (
            stream.integers(Purpose.CELLS_RULE, RULES, rows, 1)
            if self.rule == "random"
            else torch.full_like(state[..., :1], self.rule)
        )
        per_state = self.shown // self.cells_per_token + self.separator
        count = -(-length // per_state)
        weights = 2 ** torch.arange(self.cells_per_token, device=stream.device)
        end = torch.full_like(state[..., :1], 2**self.cells_per_token)
        states = []
        for step in range(self.burn_in + count):
            if step >= self.burn_in:
                tokens = (state[..., : self.shown].unflatten(-1, (-1, self.cells_per_token)) * weights).sum(dim=-1)
                states += [tokens, end] if self.separator else [tokens]
            around = 4 * state.roll(1, -1) + 2 * state + state.roll(-1, -1)
            state = (rule >> around) & 1
        return torch.cat(states, dim=-1)[..., :length].to(token_dtype(self.vocabulary))
