"""The pointwise source: every row has its own distribution over the vocabulary and draws each token from it.

`paper` (Bloem 2025): p ~ Dirichlet(1/2, ..., 1/2) over the whole vocabulary. Its entries are squares of normal numbers
over their sum. `code`, what the published code does instead: p ~ Dirichlet with the parameter 1 at k ~ U{0, ..., 19}
random entries and 1e-8 at the others, which is, but in fewer than one row of 10 000, exponential numbers over their
sum at those entries and nothing elsewhere; k = 0 leaves one random entry, as k = 1 does.
"""

from __future__ import annotations

from typing import Literal

import numpy
import torch

from upscale.randomness.streams import Purpose, Stream
from upscale.sources.base import Source, SourceSettings
from upscale.sources.tokens import check_vocabulary, drawn, permutations, token_dtype

VARIANTS = ("paper", "code")
_LARGEST_COUNT = 19


class PointwiseSettings(SourceSettings):
    kind: Literal["pointwise"]
    variant: Literal["paper", "code"] = "paper"
    """paper: a Dirichlet(1/2) distribution a row; code: what the published code does, 0 to 19 tokens a row."""

    def bits(self, length: int, vocabulary: int) -> numpy.ndarray | None:
        return polya_bits(length, vocabulary) if self.variant == "paper" else None

    def build(self, vocabulary: int) -> PointwiseSource:
        return PointwiseSource(vocabulary=vocabulary, **self.arguments())


def polya_bits(length: int, vocabulary: int) -> numpy.ndarray:
    """Expected bits of each token given those before it, (length,) float64, exact.

    After t tokens the best prediction of one that stood there n times is (n + 1/2) / (t + V / 2), and n follows a
    beta-binomial law.
    """
    alpha, beta = 0.5, (vocabulary - 1) / 2

    def log_gamma(start: float) -> numpy.ndarray:
        """Of start, start + 1, ..., less that of start."""
        return numpy.concatenate([[0.0], numpy.log(start + numpy.arange(length)).cumsum()])

    factorial, ones, others, all_ = (log_gamma(start) for start in (1.0, alpha, beta, alpha + beta))
    bits = numpy.zeros(length)
    for time in range(length):
        n = numpy.arange(time + 1)
        log_law = factorial[time] - factorial[n] - factorial[time - n] + ones[n] + others[time - n] - all_[time]
        share = (n + alpha) / (time + alpha + beta)
        bits[time] = -vocabulary * (numpy.exp(log_law) * share * numpy.log2(share)).sum()
    return bits


class PointwiseSource(Source):
    """Independent tokens, a distribution a row; reads neither conditions nor seeds."""

    def __init__(self, *, vocabulary: int, variant: str = "paper") -> None:
        check_vocabulary(vocabulary)
        if variant not in VARIANTS:
            raise ValueError(f"variant is {variant!r}; allowed: {', '.join(VARIANTS)}")
        self.vocabulary, self.variant = vocabulary, variant

    def write(self, stream: Stream, conditions: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """(L, rows, length) of the shape of `conditions`."""
        _, rows, length = conditions.shape
        shares = self._dirichlet(stream, rows) if self.variant == "paper" else self._few(stream, rows)
        tokens = drawn(shares, stream.uniform(Purpose.TOKEN, rows, length))
        return tokens.to(token_dtype(self.vocabulary))

    def _dirichlet(self, stream: Stream, rows: int) -> torch.Tensor:
        return stream.normal(Purpose.DIRICHLET, rows, self.vocabulary).to(torch.float64).square_().clamp_(min=2.0**-32)

    def _few(self, stream: Stream, rows: int) -> torch.Tensor:
        most = min(_LARGEST_COUNT, self.vocabulary)
        entries = permutations(stream, Purpose.DIRICHLET_ENTRIES, rows, self.vocabulary)[..., :most]
        count = stream.integers(Purpose.DIRICHLET_COUNT, most + 1, rows, 1).clamp_(min=1)
        exponential = -(1 - stream.uniform(Purpose.DIRICHLET, rows, most).to(torch.float64)).log()
        # The least weight keeps the only entry's draw possible where its exponential is 0.
        exponential.clamp_(min=2.0**-32).mul_(torch.arange(most, device=stream.device) < count)
        return exponential.new_zeros(*entries.shape[:2], self.vocabulary).scatter_(-1, entries, exponential)
