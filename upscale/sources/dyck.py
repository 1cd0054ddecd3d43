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

`variant: delimited`. A sample is the token 2 * brackets, a balanced string of n pairs, and 2 * brackets + 1; n is drawn
uniformly from `pairs`. In the string one opens if none is open, the one opened last closes if n have opened or `depth`
are open, and else one opens with probability `open_probability`. Samples follow each other, and the row's end cuts the
last one; in the published code (Axym-Labs/pptrain) a row is one sample with pads behind it. Its preset, which names
arXiv 2601.21725 and is not what that has, is 64 types, 0.55, depth 256, 128 to 768 pairs. The number of pairs stays
hidden, so that no optimum is given.

Nesting with Zipfian words (Papadimitriou and Jurafsky) is the source `nesting`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Annotated, Literal

import numpy
import torch
from pydantic import Field

from upscale.randomness.streams import Purpose, Stream
from upscale.settings import Count, Share
from upscale.sources.base import Problems, Source, SourceSettings, binary_entropy, exceeds
from upscale.sources.tokens import check_vocabulary, renamed, token_dtype

if TYPE_CHECKING:
    from upscale.config import ModelConfig

VARIANTS = ("words", "balanced", "delimited")


class DyckSettings(SourceSettings):
    measured = {
        "": {},
        "balanced": {"variant": "balanced"},
        "delimited": {"variant": "delimited", "pairs": [128, 768], "depth": 256},
    }

    kind: Literal["dyck"]
    variant: Literal[VARIANTS] = "words"  # type: ignore[valid-type]
    """words: one after the other, as long as they come; balanced: a row is one balanced string; delimited: strings of
    so many pairs, each between a token that begins it and one that ends it."""
    brackets: Count = 64
    """Types of brackets; each takes two tokens."""
    open_probability: Share = 0.5
    """How often a bracket opens where one may also close."""
    depth: Count = 64
    """words and delimited: brackets that may be open at once."""
    word_tokens: Count | None = None
    """words only: tokens of a word after which it only closes; null: no such bound."""
    pairs: Annotated[list[Count], Field(min_length=2, max_length=2)] | None = None
    """delimited only: the fewest and the most pairs of a string."""
    permute: bool = False
    """Rename the tokens of each row at random."""

    def problems(self, model: ModelConfig | None) -> Problems:
        delimited = self.variant == "delimited"
        tokens = 2 * self.brackets + 2 * delimited
        if model and tokens > model.vocabulary:
            yield "brackets", f"{self.brackets} need {tokens} tokens: {exceeds(model)}"
        if self.variant == "balanced" and self.depth != 64:
            yield "depth", "is for variant: words and delimited; a balanced row has no such bound: leave it out"
        if self.variant != "words" and self.word_tokens is not None:
            yield "word_tokens", f"is for variant: words, not {self.variant}: leave it out"
        if delimited != (self.pairs is not None):
            yield "pairs", "give [fewest, most]" if delimited else f"is for variant: delimited, not {self.variant}"
        elif self.pairs and self.pairs[0] > self.pairs[1]:
            yield "pairs", f"{self.pairs} is not [fewest, most]"

    def bits(self, length: int, vocabulary: int) -> numpy.ndarray | None:
        if self.permute or self.variant == "delimited":
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
        pairs: Sequence[int] | None = None,
        permute: bool = False,
    ) -> None:
        check_vocabulary(vocabulary)
        if variant not in VARIANTS:
            raise ValueError(f"variant is {variant!r}; allowed: {', '.join(VARIANTS)}")
        most = vocabulary // 2 - (variant == "delimited")
        if not 1 <= brackets <= most:
            raise ValueError(f"brackets is {brackets}; allowed: 1 to half of the vocabulary ({most})")
        if variant == "delimited" and not (pairs and 1 <= pairs[0] <= pairs[1]):
            raise ValueError(f"pairs is {pairs}; allowed: the fewest and the most pairs of a string, 1 or more")
        if not 0 <= open_probability <= 1:
            raise ValueError(f"open_probability is {open_probability}; allowed: 0 to 1")
        if depth < 1:
            raise ValueError(f"depth is {depth}; allowed: 1 or more")
        if word_tokens is not None and word_tokens < 1:
            raise ValueError(f"word_tokens is {word_tokens}; allowed: 1 or more")
        self.vocabulary, self.variant, self.brackets, self.permute = vocabulary, variant, brackets, permute
        self.open_probability, self.depth, self.word_tokens = open_probability, depth, word_tokens
        self.pairs = pairs

    def write(self, stream: Stream, conditions: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """(L, rows, length) of the shape of `conditions`."""
        lanes, rows, length = conditions.shape
        wishes = stream.uniform(Purpose.DYCK_OPEN, rows, length) < self.open_probability
        types = stream.integers(Purpose.DYCK_TYPE, self.brackets, rows, length)
        wishes, types = (each.view(lanes * rows, length).T.contiguous() for each in (wishes, types))
        if self.pairs:
            tokens = self._delimited(wishes, types, self._numbers_of_pairs(stream, rows, length))
        else:
            tokens = self._undelimited(wishes, types)
        tokens = tokens.T.reshape(lanes, rows, length)
        if self.permute:
            tokens = renamed(tokens, stream, Purpose.PERMUTATION, self.vocabulary)
        return tokens.to(token_dtype(self.vocabulary))

    def _undelimited(self, wishes: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        """(length, n) tokens of n rows, from wishes to open and types of what opens, of the same shape."""
        length, count = types.shape
        deepest = length if self.variant == "balanced" else min(self.depth, length)
        # Place 0 holds nothing; depth d's bracket lies at place d.
        open_types = torch.zeros(deepest + 1, count, dtype=torch.int64, device=types.device)
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
        return tokens

    def _numbers_of_pairs(self, stream: Stream, rows: int, length: int) -> torch.Tensor:
        """Pairs of the strings of each row, as many strings as it could hold: (strings, n) int64."""
        assert self.pairs
        fewest, most = self.pairs
        strings = -(-length // (2 * fewest + 2))
        drawn = fewest + stream.integers(Purpose.DYCK_PAIRS, most - fewest + 1, rows, strings)
        return drawn.flatten(0, 1).T.contiguous()

    def _delimited(self, wishes: torch.Tensor, types: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        """The same with strings of so many `pairs`."""
        length, count = types.shape
        open_types = torch.zeros(min(self.depth, length) + 1, count, dtype=torch.int64, device=types.device)
        number, opened, depth = (torch.zeros_like(types[0]) for _ in range(3))
        inside = torch.zeros_like(depth, dtype=torch.bool)
        tokens = torch.empty_like(types)
        for time in range(length):
            left = pairs.gather(0, number[None])[0] - opened
            ends = inside & (depth == 0) & (left == 0)
            opens = inside & ((depth == 0) | (wishes[time] & (depth < self.depth))) & (left > 0)
            closes = inside & ~ends & ~opens
            held = open_types.gather(0, depth[None])[0]
            tokens[time] = torch.where(opens, types[time], held + self.brackets)
            tokens[time] = torch.where(inside & ~ends, tokens[time], 2 * self.brackets + ends)
            depth += opens.long() - closes.long()
            held = open_types.gather(0, depth[None])[0]
            open_types.scatter_(0, depth[None], torch.where(opens, types[time], held)[None])
            opened = (opened + opens) * ~ends
            number = (number + ends).clamp(max=len(pairs) - 1)
            inside = ~ends  # the first token of a row, and the one after an end, begins a string
        return tokens

    def _may_open(self, depth: torch.Tensor, age: torch.Tensor, left: int) -> torch.Tensor:
        """Whether a bracket may open where one may also close; `age` is the tokens of a word so far."""
        if self.variant == "balanced":
            return depth < left - 1
        return (depth < self.depth) if self.word_tokens is None else (depth < self.depth) & (age < self.word_tokens)
