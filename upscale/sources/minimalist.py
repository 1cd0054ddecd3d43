"""The minimalist source: bracketed sentences of a minimalist syntax, MP-Struct Core (Mita et al., arXiv 2605.16758).

Ten of the 14 ids are brackets, t closing as t + 5: 0 a constituent, 1 Move, 2 and 3 Agree A and B, 4 Select; 10, 11
and 12 are the heads C, T and V; 13, a leaf, is not used. With [c] for 0 c 5 and pair = [4][9], a sentence draws move
and agree A or B, each with 1/2, and one of the six orders of the parts [12], [6 if move] and [pair]:

    subject  = [g pair], g = 2 for A and 3 for B
    phrase   = [the three parts in their order]
    tense    = [ (subject, or [] if move) [11 g + 5] phrase ]
    sentence = [ ([subject] if move, else []) [10, and 1 if move] tense ]

So there are 24 sentences, all equally likely, of 37 ids without move and 41 with it. They follow each other, and the
row's end cuts the last one. All tokens are targets. The published rows have 1024 tokens.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy
import torch

from upscale.randomness.streams import Purpose, Stream
from upscale.sources.base import Problems, Source, SourceSettings, exceeds
from upscale.sources.tokens import check_vocabulary, token_dtype

if TYPE_CHECKING:
    from upscale.config import ModelConfig

IDS = 14


class MinimalistSettings(SourceSettings):
    kind: Literal["minimalist"]

    def problems(self, model: ModelConfig | None) -> Problems:
        if model and model.vocabulary < IDS:
            yield "kind", f"its {IDS} tokens are {exceeds(model)}"

    def bits(self, length: int, vocabulary: int) -> numpy.ndarray:
        return expected_bits(length)

    def build(self, vocabulary: int) -> MinimalistSource:
        return MinimalistSource(vocabulary=vocabulary)


@cache
def sentences() -> tuple[tuple[int, ...], ...]:
    """The 24 sentences, in the order of (move, agree, order of the parts)."""

    def inside(*parts: int) -> list[int]:
        return [0, *parts, 5]

    pair = [*inside(4), *inside(9)]
    found = []
    for move, agree in itertools.product((False, True), (2, 3)):
        subject = inside(agree, *pair)
        parts = (inside(12), inside(6) if move else inside(), inside(*pair))
        for order in itertools.permutations(parts):
            phrase = inside(*itertools.chain(*order))
            tense = inside(*(inside() if move else subject), *inside(11, agree + 5), *phrase)
            head = inside(10, 1) if move else inside(10)
            found.append(tuple(inside(*(inside(*subject) if move else inside()), *head, *tense)))
    return tuple(found)


def expected_bits(length: int) -> numpy.ndarray:
    """Expected bits of each token, (length,) float64, exact: no sentence begins another one, so their ends are seen."""
    of_place = numpy.zeros(max(map(len, sentences())))
    for place in range(len(of_place)):
        groups: dict[tuple[int, ...], list[int]] = {}
        for sentence in sentences():
            if place < len(sentence):
                groups.setdefault(sentence[:place], []).append(sentence[place])
        for following in groups.values():
            counts = numpy.unique(following, return_counts=True)[1]
            of_place[place] += (counts * numpy.log2(len(following) / counts)).sum() / len(sentences())
    sizes, shares = numpy.unique([len(sentence) for sentence in sentences()], return_counts=True)
    bits, starts = numpy.zeros(length + len(of_place)), numpy.zeros(length + len(of_place))
    starts[0] = 1
    for place in range(length):
        bits[place : place + len(of_place)] += starts[place] * of_place
        starts[place + sizes] += starts[place] * shares / len(sentences())
    return bits[:length]


class MinimalistSource(Source):
    """Sentences of MP-Struct Core; reads neither conditions nor seeds."""

    def __init__(self, *, vocabulary: int) -> None:
        check_vocabulary(vocabulary)
        if vocabulary < IDS:
            raise ValueError(f"vocabulary is {vocabulary}; allowed: at least {IDS}")
        self.vocabulary = vocabulary

    def write(self, stream: Stream, conditions: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """(L, rows, length) of the shape of `conditions`."""
        _, rows, length = conditions.shape
        sizes = torch.tensor([len(sentence) for sentence in sentences()])
        padded = torch.zeros(len(sizes), int(sizes.max()), dtype=torch.int64)
        for number, sentence in enumerate(sentences()):
            padded[number, : len(sentence)] = torch.tensor(sentence)
        sizes, padded = sizes.to(stream.device), padded.to(stream.device)
        count = -(-length // min(map(len, sentences())))
        chosen = stream.integers(Purpose.SENTENCE, len(sizes), rows, count)
        ends = sizes[chosen].cumsum(dim=-1)
        place = torch.arange(length, device=stream.device).expand(*chosen.shape[:2], -1).contiguous()
        turn = torch.searchsorted(ends, place, right=True)
        sentence = chosen.gather(-1, turn)
        tokens = padded[sentence, place - ends.gather(-1, turn) + sizes[sentence]]
        return tokens.to(token_dtype(self.vocabulary))
