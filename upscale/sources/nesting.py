"""The nesting source: Zipfian words whose second occurrences are nested, crossing or repeated.

The structures of Papadimitriou and Jurafsky (arXiv 2304.13060). Words are ids 0 to words - 1, word r drawn with a
probability proportional to 1 / (r + 2.7), or uniformly (`zipf: false`). There the ranks are given to ids by one random
order for a whole corpus; here the rank is the id, which a fresh model cannot tell apart. All tokens are targets.

- `nest`: if nothing is open, or with probability `open_probability`, a word opens; else the one opened last closes. A
  word closes as itself, so that a text does not tell which is which; with `paired` as its id + words.
- `cross`: at each free place from left to right, a word and a distance are drawn. The word also goes to the place that
  far to the right, or if it is taken to the nearest free one of -1, +1, -2, +2, ... from it; beyond the row nowhere.
- `mix`: at each free place `cross` with probability `cross_share`, else `nest` on the free places.
- `repetition`: words of `block` tokens are written twice, one after the other; the row's end cuts.

A distance is that of an opening to its closing in an endless `nest`; in the published code it is drawn from those
counted in generated rows, where none beyond a row's end is counted. The published settings: rows of 512, 500 or 50 000
words, 0.49, `mix` with 0.01 or 0.1, blocks of 10. Corpora that its code calls zipf repetition are uniform by an
oversight: `zipf: false`.
"""

from __future__ import annotations

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

STRUCTURES = ("nest", "cross", "mix", "repetition")
ZIPF_OFFSET = 2.7


class NestingSettings(SourceSettings):
    measured = {structure: {"structure": structure} for structure in STRUCTURES}

    kind: Literal["nesting"]
    structure: Literal[STRUCTURES]  # type: ignore[valid-type]
    """How a word's second occurrence lies to others: nested, crossing, both, or in a repeated block."""
    words: Count = 256
    """Different words."""
    zipf: bool = True
    """Words by the law of Zipf and Mandelbrot; false: uniform."""
    paired: bool = False
    """nest only: a word closes as another id, words above its own, rather than as itself."""
    open_probability: Share = 0.49
    """How often a word opens where one may also close; below 0.5 all that open also close."""
    cross_share: Share = 0.1
    """mix only: free places that begin a crossing pair."""
    block: Count = 10
    """repetition only: tokens that are repeated together."""

    def problems(self, model: ModelConfig | None) -> Problems:
        if self.paired and self.structure != "nest":
            yield "paired", f"is for structure: nest, not {self.structure}"
        if self.structure in ("cross", "mix") and self.open_probability > 0.5:
            yield "open_probability", f"{self.open_probability} gives some openings no distance: at most 0.5"
        tokens = self.words * (1 + self.paired)
        if model and tokens > model.vocabulary:
            yield "words", f"{self.words} need {tokens} tokens: {exceeds(model)}"

    def bits(self, length: int, vocabulary: int) -> numpy.ndarray | None:
        """Exact for repetition and for paired nesting; others hide their structure."""
        word = word_entropy(self.words, self.zipf)
        if self.structure == "repetition":
            return word * (numpy.arange(length) // self.block % 2 == 0)
        if self.paired:
            return nest_bits(length, self.open_probability, word)
        return None

    def launches_many(self, model: ModelConfig) -> bool:
        """A word after another, but for repetition."""
        return self.structure != "repetition"

    def build(self, vocabulary: int) -> NestingSource:
        return NestingSource(vocabulary=vocabulary, **self.arguments())


def word_shares(words: int, zipf: bool) -> numpy.ndarray:
    """The probability of each word, (words,) float64."""
    shares = 1 / (numpy.arange(words) + ZIPF_OFFSET) if zipf else numpy.ones(words)
    return shares / shares.sum()


def word_entropy(words: int, zipf: bool) -> float:
    """Bits of a word."""
    shares = word_shares(words, zipf)
    return float(-(shares * numpy.log2(shares)).sum())


def nest_bits(length: int, open_probability: float, word: float) -> numpy.ndarray:
    """Expected bits of each token of paired nesting, (length,) float64: the law of the depth is followed."""
    law, bits = numpy.zeros(length + 2), numpy.zeros(length)
    law[0] = 1
    for time in range(length):
        inside = 1 - law[0]
        bits[time] = word * (law[0] + inside * open_probability) + inside * binary_entropy(open_probability)
        opening, closing = law * open_probability, law * (1 - open_probability)
        opening[0], closing[0] = law[0], 0
        law = numpy.zeros_like(law)
        law[1:] += opening[:-1]
        law[:-1] += closing[1:]
    return bits


@cache
def distance_law(longest: int, open_probability: float) -> numpy.ndarray:
    """The probability that an opening closes at most d tokens later, for d = 0 to longest, float64.

    The first return of a walk: distance 2 j + 1 has probability Catalan(j) p^j (1 - p)^(j + 1).
    """
    shares = numpy.zeros(longest + 1)
    share = 1 - open_probability
    for j in range((longest + 1) // 2):
        shares[2 * j + 1] = share
        share *= open_probability * (1 - open_probability) * 2 * (2 * j + 1) / (j + 2)
    return shares.cumsum()


class NestingSource(Source):
    """Structured repetitions of words; reads neither conditions nor seeds."""

    def __init__(
        self,
        *,
        vocabulary: int,
        structure: str,
        words: int = 256,
        zipf: bool = True,
        paired: bool = False,
        open_probability: float = 0.49,
        cross_share: float = 0.1,
        block: int = 10,
    ) -> None:
        check_vocabulary(vocabulary)
        if structure not in STRUCTURES:
            raise ValueError(f"structure is {structure!r}; allowed: {', '.join(STRUCTURES)}")
        if not 1 <= words * (1 + paired) <= vocabulary:
            raise ValueError(f"words is {words}; allowed: 1 to {vocabulary // (1 + paired)}")
        if paired and structure != "nest":
            raise ValueError(f"paired is for structure nest, not {structure}")
        if not 0 <= open_probability <= 1 or not 0 <= cross_share <= 1:
            raise ValueError(f"open_probability is {open_probability}, cross_share {cross_share}; allowed: 0 to 1 each")
        if block < 1:
            raise ValueError(f"block is {block}; allowed: 1 or more")
        self.vocabulary, self.structure, self.words, self.paired = vocabulary, structure, words, paired
        self.open_probability, self.block = open_probability, block
        self.cross_share = {"cross": 1.0, "mix": cross_share}.get(structure, 0.0)
        # A word is the place of a 32-bit number among the cumulative shares.
        cumulative = (word_shares(words, zipf).cumsum() * 2.0**32).round().astype("int64")
        cumulative[-1] = 1 << 32
        self.heights = torch.from_numpy(cumulative)

    def write(self, stream: Stream, conditions: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """(L, rows, length) of the shape of `conditions`."""
        lanes, rows, length = conditions.shape
        drawn = stream.bits(Purpose.NEST_WORD, rows * length).reshape(lanes * rows, length)
        drawn = torch.searchsorted(self.heights.to(stream.device), drawn, right=True)
        if self.structure == "repetition":
            place = torch.arange(length, device=stream.device)
            tokens = drawn[:, place - self.block * (place // self.block % 2)]
        else:
            tokens = self._nested(stream, rows, length, drawn)
        return tokens.view(lanes, rows, length).to(token_dtype(self.vocabulary))

    def _nested(self, stream: Stream, rows: int, length: int, drawn: torch.Tensor) -> torch.Tensor:
        """(L rows, length) int64."""
        some = torch.arange(len(drawn), device=stream.device)
        wishes = (stream.uniform(Purpose.NEST_OPEN, rows, length) < self.open_probability).view(-1, length)
        crosses = (stream.uniform(Purpose.NEST_CROSS, rows, length) < self.cross_share).view(-1, length)
        if self.cross_share:
            law = torch.from_numpy(distance_law(length, self.open_probability)).to(stream.device)
            words = stream.bits(Purpose.NEST_DISTANCE, rows * length).reshape(-1, length)
            distances = torch.searchsorted(law, words.to(torch.float64) * 2.0**-32, right=True)
        # Place 0 holds nothing; depth d's word lies at place d. An empty place of a row is -1.
        held = torch.zeros(len(drawn), length + 2, dtype=torch.int64, device=stream.device)
        depth = torch.zeros_like(some)
        tokens = torch.full((len(drawn), length), -1, dtype=torch.int64, device=stream.device)
        for time in range(length):
            free, word = tokens[:, time] < 0, drawn[:, time]
            cross = free & crosses[:, time]
            nest = free & ~cross
            opens = nest & ((depth == 0) | wishes[:, time])
            closes = nest & ~opens
            closed = held[some, depth] + self.words * self.paired
            tokens[:, time] = torch.where(free, torch.where(closes, closed, word), tokens[:, time])
            if self.cross_share:
                self._pair(tokens, cross, time, distances[:, time], word)
            depth += opens.long() - closes.long()
            held[some, depth] = torch.where(opens, word, held[some, depth])
        return tokens

    @staticmethod
    def _pair(tokens: torch.Tensor, cross: torch.Tensor, time: int, distance: torch.Tensor, word: torch.Tensor) -> None:
        """Write a crossing word's second occurrence at the free place nearest to its distance, the left one first."""
        length = tokens.shape[1]
        target = time + distance
        place = torch.arange(length, device=tokens.device)
        offset = place - target[:, None]
        order = 2 * offset.abs() - (offset < 0).long()
        order = order.masked_fill(tokens >= 0, 4 * length)
        nearest, chosen = order.min(dim=1)
        there = cross & (target < length) & (nearest < 4 * length)
        row = there.nonzero()[:, 0]
        tokens[row, chosen[row]] = word[row]
