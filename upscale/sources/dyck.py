"""The Dyck source: well-nested brackets of `brackets` types, in the variants that others pre-train on.

Opening brackets are tokens 0 to brackets - 1, the one that closes token t is brackets + t. A type is drawn uniformly.

`variant: words`. A row begins between words. There a bracket opens; inside, one opens with probability
`open_probability` unless `depth` are open already, else the one opened last closes. Once a word has `word_tokens`
tokens it only closes. Words follow each other without delimiters, and the row's end cuts the last one. Hu et al. (arXiv
2502.19249) have 30 or 64 types, 0.5, depth 16 and 509 tokens. The baseline of arXiv 2603.10055 is called k-Dyck without
numbers; the defaults, without a bound on words, are ours.

`variant: balanced`. With r tokens left of a row and d brackets open: one opens if d = 0; all are closed if r <= d; else
one opens with probability `open_probability`, but only if d < r - 1, else the one opened last closes. `depth` and
`word_tokens` are not asked. So a row of an even number of tokens is one balanced string; an odd one ends with a lone
open bracket. arXiv 2601.21725 has 64 types, 0.5 and 2048 tokens, which is a context of 2047.

Nesting with Zipfian words (Papadimitriou and Jurafsky) is the source `nesting`.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy
import torch

from upscale.randomness.streams import Purpose, Stream
from upscale.settings import Count, Share
from upscale.sources.base import Problems, Source, SourceSettings, binary_entropy, exceeds
from upscale.sources.tokens import check_vocabulary, renamed, token_dtype

if TYPE_CHECKING:
    from upscale.config import ModelConfig

VARIANTS = ("words", "balanced")


class DyckSettings(SourceSettings):
    measured = {"": {}, "balanced": {"variant": "balanced"}}

    kind: Literal["dyck"]
    variant: Literal[VARIANTS] = "words"  # type: ignore[valid-type]
    """words: one after the other, as long as they come; balanced: a row is one balanced string."""
    brackets: Count = 64
    """Types of brackets; each takes two tokens."""
    open_probability: Share = 0.5
    """How often a bracket opens where one may also close."""
    depth: Count = 64
    """words only: brackets that may be open at once."""
    word_tokens: Count | None = None
    """words only: tokens of a word after which it only closes; null: no such bound."""
    permute: bool = False
    """Rename the tokens of each row at random."""

    def problems(self, model: ModelConfig | None) -> Problems:
        if model and 2 * self.brackets > model.vocabulary:
            yield "brackets", f"{self.brackets} need {2 * self.brackets} tokens: {exceeds(model)}"
        if self.variant == "balanced" and (self.depth, self.word_tokens) != (64, None):
            yield (
                "depth",
                "is, as word_tokens, for variant: words; a balanced row has no bound on either: leave both out",
            )

    def bits(self, length: int, vocabulary: int) -> numpy.ndarray | None:
        if self.permute:
            return None
        limits = (0, 0) if self.variant == "balanced" else (min(self.depth, length), self.word_tokens or length + 1)
        return expected_bits(length, self.brackets, self.open_probability, *limits)

    def launches_many(self, model: ModelConfig) -> bool:
        """A bracket after another."""
        return True

    def build(self, vocabulary: int) -> DyckSource:
        return DyckSource(vocabulary=vocabulary, **self.arguments())


@cache
def expected_bits(length: int, brackets: int, open_probability: float, depth: int, word_tokens: int) -> numpy.ndarray:
    """Expected bits of each token, (length,) float64, exact: the law of depth and word is followed token by token.

    `depth` 0 is the balanced variant. A free choice costs H(p), an opening log2 of the number of types.
    """
    balanced, kind = depth == 0, math.log2(brackets)
    choice = binary_entropy(open_probability) + open_probability * kind
    deepest = length if balanced else depth
    ages = 1 if balanced or word_tokens > length else word_tokens + 1
    # Probabilities by the number of open brackets and, where it matters, the tokens of the word so far.
    law = numpy.zeros((deepest + 2, ages))
    law[0, 0] = 1
    depths = numpy.arange(deepest + 2)[:, None]
    bits = numpy.zeros(length)
    for time in range(length):
        free = depths < length - time - 1 if balanced else depths < depth
        if ages > 1:
            free = free & (numpy.arange(ages) < word_tokens)
        inside = law * (depths > 0)
        bits[time] = kind * law[0].sum() + choice * (inside * free).sum()
        opening = inside * free * open_probability
        closing = inside - opening
        opening[0] = law[0]
        older = numpy.zeros_like(law)
        older[1:] += opening[:-1]
        older[:-1] += closing[1:]
        if ages > 1:
            law = numpy.zeros_like(older)
            law[:, 1:] = older[:, :-1]
            law[:, -1] += older[:, -1]
            law[0] = 0
            law[0, 0] = older[0].sum()
        else:
            law = older
    return bits


class DyckSource(Source):
    """Random words of the k-Dyck language; reads neither conditions nor seeds.

    `permute` renames the tokens of each row by a random permutation of the vocabulary.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        variant: str = "words",
        brackets: int = 64,
        open_probability: float = 0.5,
        depth: int = 64,
        word_tokens: int | None = None,
        permute: bool = False,
    ) -> None:
        check_vocabulary(vocabulary)
        if variant not in VARIANTS:
            raise ValueError(f"variant is {variant!r}; allowed: {', '.join(VARIANTS)}")
        if not 1 <= brackets <= vocabulary // 2:
            raise ValueError(f"brackets is {brackets}; allowed: 1 to half of the vocabulary ({vocabulary // 2})")
        if not 0 <= open_probability <= 1:
            raise ValueError(f"open_probability is {open_probability}; allowed: 0 to 1")
        if depth < 1:
            raise ValueError(f"depth is {depth}; allowed: 1 or more")
        if word_tokens is not None and word_tokens < 1:
            raise ValueError(f"word_tokens is {word_tokens}; allowed: 1 or more")
        self.vocabulary, self.variant, self.brackets, self.permute = vocabulary, variant, brackets, permute
        self.open_probability, self.depth, self.word_tokens = open_probability, depth, word_tokens

    def write(self, stream: Stream, conditions: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """(L, rows, length) of the shape of `conditions`."""
        lanes, rows, length = conditions.shape
        wishes = stream.uniform(Purpose.DYCK_OPEN, rows, length) < self.open_probability
        types = stream.integers(Purpose.DYCK_TYPE, self.brackets, rows, length)
        wishes, types = (each.view(lanes * rows, length).T.contiguous() for each in (wishes, types))
        deepest = length if self.variant == "balanced" else min(self.depth, length)
        # Place 0 holds nothing; depth d's bracket lies at place d.
        open_types = torch.zeros(deepest + 1, lanes * rows, dtype=torch.int64, device=stream.device)
        depth, age = torch.zeros_like(types[0]), torch.zeros_like(types[0])
        tokens = torch.empty_like(types)
        for time in range(length):
            opens = (depth == 0) | (wishes[time] & self._may_open(depth, age, length - time))
            closed = open_types.gather(0, depth[None])[0]
            tokens[time] = torch.where(opens, types[time], closed + self.brackets)
            depth += 2 * opens - 1
            age = (age + 1) * (depth > 0)
            # After a closing bracket this writes what the place holds already.
            held = open_types.gather(0, depth[None])[0]
            open_types.scatter_(0, depth[None], torch.where(opens, types[time], held)[None])
        tokens = tokens.T.reshape(lanes, rows, length)
        if self.permute:
            tokens = renamed(tokens, stream, Purpose.PERMUTATION, self.vocabulary)
        return tokens.to(token_dtype(self.vocabulary))

    def _may_open(self, depth: torch.Tensor, age: torch.Tensor, left: int) -> torch.Tensor:
        """Whether a bracket may open where one may also close; `age` is the tokens of a word so far."""
        if self.variant == "balanced":
            return depth < left - 1
        return (depth < self.depth) if self.word_tokens is None else (depth < self.depth) & (age < self.word_tokens)
