"""The Dyck source: well-nested brackets of `brackets` types, the formal-language baseline of arXiv 2603.10055.

That paper's page names the baseline k-Dyck and gives no numbers; this is the language as it is usually drawn. A row
begins between words. There a bracket opens, of a random type; inside, one opens with probability `open_probability`
unless `depth` are open already, else the one opened last closes. Words follow each other without delimiters, and the
row's end cuts the last one. Opening brackets are tokens 0 to brackets - 1, the one that closes token t is brackets + t.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from upscale.randomness.streams import Purpose, Stream
from upscale.settings import Count, Share
from upscale.sources.base import Problems, Source, SourceSettings, exceeds
from upscale.sources.tokens import check_vocabulary, renamed, token_dtype

if TYPE_CHECKING:
    from upscale.config import ModelConfig


class DyckSettings(SourceSettings):
    kind: Literal["dyck"]
    brackets: Count = 64
    """Types of brackets; each takes two tokens."""
    open_probability: Share = 0.5
    """How often a bracket opens where one may also close."""
    depth: Count = 64
    """Brackets that may be open at once."""
    permute: bool = False
    """Rename the tokens of each row at random."""

    def problems(self, model: ModelConfig | None) -> Problems:
        if model and 2 * self.brackets > model.vocabulary:
            yield "brackets", f"{self.brackets} need {2 * self.brackets} tokens: {exceeds(model)}"

    def launches_many(self, model: ModelConfig) -> bool:
        """A bracket after another."""
        return True

    def build(self, vocabulary: int) -> DyckSource:
        return DyckSource(vocabulary=vocabulary, **self.arguments())


class DyckSource(Source):
    """Random words of the k-Dyck language; reads neither conditions nor seeds.

    `permute` renames the tokens of each row by a random permutation of the vocabulary.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        brackets: int = 64,
        open_probability: float = 0.5,
        depth: int = 64,
        permute: bool = False,
    ) -> None:
        check_vocabulary(vocabulary)
        if not 1 <= brackets <= vocabulary // 2:
            raise ValueError(f"brackets is {brackets}; allowed: 1 to half of the vocabulary ({vocabulary // 2})")
        if not 0 <= open_probability <= 1:
            raise ValueError(f"open_probability is {open_probability}; allowed: 0 to 1")
        if depth < 1:
            raise ValueError(f"depth is {depth}; allowed: 1 or more")
        self.vocabulary, self.brackets, self.permute = vocabulary, brackets, permute
        self.open_probability, self.depth = open_probability, depth

    def write(self, stream: Stream, conditions: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """(L, rows, length) of the shape of `conditions`."""
        lanes, rows, length = conditions.shape
        wishes = stream.uniform(Purpose.DYCK_OPEN, rows, length) < self.open_probability
        types = stream.integers(Purpose.DYCK_TYPE, self.brackets, rows, length)
        wishes, types = (each.view(lanes * rows, length).T.contiguous() for each in (wishes, types))
        # Place 0 holds nothing; depth d's bracket lies at place d.
        open_types = torch.zeros(min(self.depth, length) + 1, lanes * rows, dtype=torch.int64, device=stream.device)
        depth = torch.zeros_like(types[0])
        tokens = torch.empty_like(types)
        for time in range(length):
            opens = (depth == 0) | (wishes[time] & (depth < self.depth))
            closed = open_types.gather(0, depth[None])[0]
            tokens[time] = torch.where(opens, types[time], closed + self.brackets)
            depth += 2 * opens - 1
            # After a closing bracket this writes what the place holds already.
            held = open_types.gather(0, depth[None])[0]
            open_types.scatter_(0, depth[None], torch.where(opens, types[time], held)[None])
        tokens = tokens.T.reshape(lanes, rows, length)
        if self.permute:
            tokens = renamed(tokens, stream, Purpose.PERMUTATION, self.vocabulary)
        return tokens.to(token_dtype(self.vocabulary))
