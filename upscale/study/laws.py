"""Power laws with an irreducible term, L = E + A / N^a, how surely data determine them, and what they predict.

A law is determined when all of this holds: at least LEAST_SIZES sizes; the bits fall from the smallest to the largest,
95 % surely; the 95 % interval of the exponent a is inside EXPONENTS and its upper end at most WIDEST_RATIO times its
lower; and no residual exceeds LARGEST_RESIDUAL standard errors. Else the first of these that fails is told instead of
numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

LEAST_SIZES = 4
EXPONENTS = (0.01, 4.0)
WIDEST_RATIO = 3.0
LARGEST_RESIDUAL = 3.0
REPLICATES = 200
INTERVAL = (2.5, 97.5)
LEAST_ERROR = 1e-4
"""Bits; no mean is known better than this, so that equal seeds do not get infinite weight."""


@dataclass(frozen=True)
class Sample:
    """Bits per character at one size, of every seed."""

    size: float
    """Parameters or floating-point operations."""
    bits: tuple[float, ...]
    """Of each seed, over all its slices."""
    groups: tuple[tuple[float, ...], ...]
    """Of each seed over consecutive parts of the slices, the same at every size; empty where there are too few."""
    errors: tuple[float, ...]
    """Standard errors of each seed over slices, used where there are no groups."""

    @property
    def mean(self) -> float:
        return float(numpy.mean(self.bits))


@dataclass(frozen=True)
class Law:
    """L = irreducible + A / N^exponent, A given as the reducible bits at `centre`."""

    irreducible: float
    reducible: float
    exponent: float
    centre: float

    def at(self, sizes: float | numpy.ndarray) -> numpy.ndarray:
        """Bits per character at sizes."""
        return self.irreducible + self.reducible * (numpy.asarray(sizes) / self.centre) ** -self.exponent


@dataclass(frozen=True)
class Fit:
    """A law, the laws of bootstrap replicates, and whether the data determine it."""

    law: Law
    replicates: tuple[Law, ...]
    """Empty where there are too few sizes or the bits do not fall."""
    residuals: tuple[float, ...]
    """Measured less fitted bits, size after size."""
    errors: tuple[float, ...]
    """Standard errors of the measured bits, over slices and seeds."""
    undetermined: str | None
    """Why the data do not determine the law; None where they do."""

    def interval(self, name: str) -> tuple[float, float]:
        """The 95 % bootstrap interval of a number of the law."""
        return _interval([getattr(law, name) for law in self.replicates])

    def predicted(self, size: float) -> tuple[float, float, float]:
        """Bits that the law predicts at a size, and their 95 % interval: of the law, not of a single seed around it."""
        return float(self.law.at(size)), *_interval([float(law.at(size)) for law in self.replicates])


def replicates(samples: Sequence[Sample], count: int, random: numpy.random.Generator) -> numpy.ndarray:
    """Mean bits of bootstrap replicates, (count, sizes).

    Slices: the groups are drawn again with replacement, the same ones at every size, since models are measured on the
    same slices; where there are none, independent normal errors. Seeds: each is given the deviation of a seed from the
    mean of its size, drawn from those of all sizes, scaled by sqrt(n / (n - 1)) for n seeds: so two seeds that agree by
    chance do not count for more, and a single one counts as uncertain as others are. Where no size has two seeds,
    nothing is known of them, and slices alone vary.
    """
    means = numpy.array([sample.mean for sample in samples])
    found = numpy.tile(means, (count, 1))
    width = max((len(groups) for sample in samples for groups in sample.groups), default=0)
    drawn = random.integers(width, size=(count, width)) if width else None
    several = [numpy.array(sample.bits) for sample in samples if len(sample.bits) > 1]
    deviations = [(bits - bits.mean()) * numpy.sqrt(len(bits) / (len(bits) - 1)) for bits in several]
    for place, sample in enumerate(samples):
        seeds = len(sample.bits)
        if drawn is not None and len(sample.groups) == seeds and all(len(each) == width for each in sample.groups):
            groups = numpy.mean(sample.groups, axis=0)
            found[:, place] += groups[drawn].mean(axis=1) - groups.mean()
        else:
            error = numpy.sqrt(numpy.nansum(numpy.square(sample.errors))) / seeds
            found[:, place] += random.normal(0.0, error, count)
        if deviations:
            found[:, place] += random.choice(numpy.concatenate(deviations), (count, seeds)).mean(axis=1)
    return found


def fit(samples: Sequence[Sample], seed: int = 0, count: int = REPLICATES) -> Fit:
    """The law of samples at three or more sizes; raises ValueError for fewer, which are no law at all."""
    sizes = numpy.array([sample.size for sample in samples])
    if len(set(sizes.tolist())) < 3:
        raise ValueError(f"{len(sizes)} sizes cannot be fitted by a law of three numbers")
    bits = numpy.array([sample.mean for sample in samples])
    drawn = replicates(samples, count, numpy.random.default_rng(seed))
    errors = numpy.maximum(drawn.std(axis=0), LEAST_ERROR)
    law = least_squares(sizes, bits, errors)
    residuals = bits - law.at(sizes)
    falls = drawn[:, numpy.argmin(sizes)] - drawn[:, numpy.argmax(sizes)]
    why: str | None
    laws: tuple[Law, ...] = ()
    if len(sizes) < LEAST_SIZES:
        why = f"{len(sizes)} sizes; {LEAST_SIZES} are needed"
    elif numpy.percentile(falls, INTERVAL[0]) <= 0:
        why = "the bits do not fall by more than their error"
    else:
        laws = tuple(least_squares(sizes, each, errors, near=law) for each in drawn)
        why = _loose(laws, float(numpy.max(numpy.abs(residuals) / errors)))
    return Fit(law, laws, tuple(residuals.tolist()), tuple(errors.tolist()), why)


def _loose(laws: Sequence[Law], worst: float) -> str | None:
    """Why laws of replicates that differ this much, and a residual of `worst` standard errors, determine nothing."""
    low, high = _interval([law.exponent for law in laws])
    if low <= EXPONENTS[0] * 1.01 or high >= EXPONENTS[1] * 0.99 or high > WIDEST_RATIO * low:
        return f"the exponent may be anything from {low:.2g} to {high:.2g}"
    if worst > LARGEST_RESIDUAL:
        return f"no such law: a residual of {worst:.1f} standard errors"
    return None


def least_squares(sizes: numpy.ndarray, bits: numpy.ndarray, errors: numpy.ndarray, near: Law | None = None) -> Law:
    """The law with the least squared residuals, each over its error; by scipy, on the logs of the law's three numbers
    within bounds, from several starts: `near` first if it is given, then few, else a grid of them."""
    from scipy import optimize  # takes a second to import

    centre = float(numpy.exp(numpy.log(sizes).mean()))
    places, lowest = numpy.log(sizes / centre), float(bits.min())
    bounds = numpy.log([[1e-4 * lowest, 1e-6, EXPONENTS[0]], [lowest, 10 * float(bits.max()), EXPONENTS[1]]])

    def terms(logs: numpy.ndarray) -> tuple[float, numpy.ndarray, float]:
        irreducible, reducible, exponent = numpy.exp(logs)
        return irreducible, reducible * numpy.exp(-exponent * places), exponent

    def residuals(logs: numpy.ndarray) -> numpy.ndarray:
        irreducible, falling, _ = terms(logs)
        return (irreducible + falling - bits) / errors

    def slopes(logs: numpy.ndarray) -> numpy.ndarray:
        irreducible, falling, exponent = terms(logs)
        columns = (numpy.full_like(falling, irreducible), falling, -exponent * places * falling)
        return numpy.stack(columns, axis=1) / errors[:, None]

    shares, exponents = ((0.01, 0.5, 0.95), (0.1, 0.3, 1.0)) if near is None else ((0.5,), (0.3,))
    starts = [
        (share * lowest, max(float(bits.mean()) - share * lowest, 1e-3), exponent)
        for share in shares
        for exponent in exponents
    ]
    if near is not None:
        starts.insert(0, (near.irreducible, near.reducible, near.exponent))
    inside = (bounds[0] + 1e-6, bounds[1] - 1e-6)
    tried = [
        optimize.least_squares(residuals, numpy.clip(numpy.log(start), *inside), slopes, bounds=bounds, max_nfev=200)
        for start in starts
    ]
    irreducible, reducible, exponent = numpy.exp(min(tried, key=lambda one: one.cost).x)
    return Law(float(irreducible), float(reducible), float(exponent), centre)


def _interval(values: Sequence[float]) -> tuple[float, float]:
    low, high = numpy.percentile(values, INTERVAL) if values else (numpy.nan, numpy.nan)
    return float(low), float(high)
