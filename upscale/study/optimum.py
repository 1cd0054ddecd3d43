"""Where a curve of few points is lowest: the parabola through the lowest point and its two neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

REPLICATES = 1000
INTERVAL = (2.5, 97.5)


@dataclass(frozen=True)
class Optimum:
    """The place of the minimum, in the unit of the places given."""

    place: float
    edge: int
    """-1 or 1 where the lowest point is the first or the last that has a value: the minimum may be beyond; else 0."""
    replicates: tuple[float, ...]
    """Of the same seeds drawn again with replacement; empty for one seed."""
    edges: tuple[int, ...]

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, over seeds; NaN for one seed. Ends that are at an edge are bounds of what was tried only."""
        low, high = numpy.percentile(self.replicates, INTERVAL) if self.replicates else (numpy.nan, numpy.nan)
        return float(low), float(high)

    @property
    def at_an_edge(self) -> bool:
        """Whether the minimum itself or an end of its interval may be beyond the places that were tried."""
        return bool(self.edge) or any(numpy.mean(numpy.equal(self.edges, side)) > 0.025 for side in (-1, 1))


def lowest(places: Sequence[float], values: numpy.ndarray) -> tuple[float, int]:
    """The vertex, and on which side it is at the edge: the lowest point itself then.

    Values that are NaN, of trainings that diverged, are left out. Raises ValueError where none is left.
    """
    known = numpy.flatnonzero(numpy.isfinite(values))
    if len(known) == 0:
        raise ValueError("no value to look for a minimum in")
    x, y = numpy.asarray(places, float)[known], values[known]
    best = int(numpy.argmin(y))
    if best in (0, len(x) - 1):
        return float(x[best]), -1 if best == 0 else 1
    near = slice(best - 1, best + 2)
    square, slope, _ = numpy.polyfit(x[near] - x[best], y[near], 2)
    return float(x[best] - slope / (2 * square)) if square > 0 else float(x[best]), 0


def draws(seeds: int, count: int = REPLICATES) -> numpy.ndarray:
    """Which seeds each bootstrap replicate takes, (count, seeds); none for one seed. The same ones at every call, so
    that differences between curves of the same seeds are paired."""
    shape = (count if seeds > 1 else 0, seeds)
    return numpy.random.default_rng(0).integers(seeds, size=shape)


def optimum(places: Sequence[float], values: numpy.ndarray) -> Optimum:
    """The optimum of the mean over seeds; `values` is (seeds, places), with NaN where a training diverged: then all
    seeds are left out at that place."""
    place, edge = lowest(places, values.mean(axis=0))
    found = [lowest(places, values[chosen].mean(axis=0)) for chosen in draws(len(values))]
    return Optimum(place, edge, tuple(one for one, _ in found), tuple(side for _, side in found))
