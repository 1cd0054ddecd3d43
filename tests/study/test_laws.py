"""Laws and minima against what was planted."""

from __future__ import annotations

import numpy
import pytest

from upscale.study import laws, optimum

SIZES = [40_000, 90_000, 160_000, 360_000, 640_000, 1_440_000]


def planted(
    irreducible: float, scale: float, exponent: float, seed: int, noise: float = 0.01, sizes: list[int] = SIZES
) -> list[laws.Sample]:
    """L = E + scale (N / 250 000)^-a with noise of seeds, of slices shared by all sizes, and of the rest."""
    random = numpy.random.default_rng(seed)
    shared = random.normal(0, noise, 20)
    samples = []
    for size in sizes:
        true = irreducible + scale * (size / 250_000) ** -exponent
        groups = [true + random.normal(0, noise / 3) + shared + random.normal(0, noise, 20) for _ in range(3)]
        bits = tuple(float(each.mean()) for each in groups)
        samples.append(laws.Sample(size, bits, tuple(map(tuple, groups)), (noise / 4,) * 3))
    return samples


def test_exact_data_give_the_law_back():
    sizes = numpy.array(SIZES, float)
    for irreducible, scale, exponent in ((1.2, 1.7, 0.4), (0.05, 3.0, 0.15), (3.0, 0.5, 1.2)):
        bits = irreducible + scale * (sizes / 250_000) ** -exponent
        found = laws.least_squares(sizes, bits, numpy.full(len(sizes), 0.01))
        assert found.at(sizes) == pytest.approx(bits, abs=1e-6)
        assert (found.exponent, found.irreducible) == pytest.approx((exponent, irreducible), rel=1e-2)
        assert found.at(1e7) == pytest.approx(irreducible + scale * 40**-exponent, abs=2e-3)


def test_intervals_hold_what_was_planted_about_as_often_as_they_say():
    """95 % intervals of 8 data sets with three seeds each: at least 6 hold the exponent, at least 6 the next size."""
    fits = [laws.fit(planted(1.2, 1.7, 0.4, seed), count=40) for seed in range(8)]
    assert all(fit.undetermined is None for fit in fits), [fit.undetermined for fit in fits]
    held = [fit.interval("exponent")[0] <= 0.4 <= fit.interval("exponent")[1] for fit in fits]
    true = 1.2 + 1.7 * (4e6 / 250_000) ** -0.4
    foretold = [fit.predicted(4e6)[1] <= true <= fit.predicted(4e6)[2] for fit in fits]
    assert sum(held) >= 6 and sum(foretold) >= 6, (held, foretold)


def test_what_is_not_determined_says_why():
    def why(samples: list[laws.Sample]) -> str:
        return laws.fit(samples, count=40).undetermined or "determined"

    assert why(planted(1.2, 1.7, 0.4, 0, sizes=SIZES[:3])) == "3 sizes; 4 are needed"
    flat = [why(planted(2.0, 0.0, 0.4, seed)) for seed in range(4)]
    assert "determined" not in flat and flat.count("the bits do not fall by more than their error") >= 2, flat
    assert why(planted(1.2, 0.3, -0.4, 0)) == "the bits do not fall by more than their error"  # they rise
    assert why(planted(1.2, 0.3, 0.3, 0, noise=0.2)).startswith("the exponent may be anything from ")
    bent = [laws.Sample(one.size, (2.0 - (one.size > 3e5),), (), (0.001,)) for one in planted(1, 1, 1, 0)]
    assert why(bent).startswith(("no such law: a residual of ", "the exponent may be anything"))
    one_seed = planted(1.2, 1.7, 0.4, 0)
    one_seed[-1] = laws.Sample(SIZES[-1], one_seed[-1].bits[:1], one_seed[-1].groups[:1], one_seed[-1].errors[:1])
    drawn = laws.replicates(one_seed, 500, numpy.random.default_rng(0)).std(axis=0)
    assert drawn[-1] > 1.1 * drawn[-2]  # a single seed is as uncertain as others are, not surer
    with pytest.raises(ValueError, match="2 sizes cannot be fitted"):
        laws.fit(planted(1.2, 1.7, 0.4, 0, sizes=SIZES[:2]))


def test_replicates_vary_as_much_as_the_means_do():
    """Against many data sets: slices and seeds each contribute what they do in truth, also for two seeds."""
    means = [[sample.mean for sample in planted(1.2, 1.7, 0.4, seed, 0.05)] for seed in range(400)]
    drawn = [
        laws.replicates(planted(1.2, 1.7, 0.4, seed, 0.05), 200, numpy.random.default_rng(0)) for seed in range(20)
    ]
    estimated = numpy.sqrt(numpy.mean([each.var(axis=0) for each in drawn], axis=0))
    assert estimated == pytest.approx(numpy.std(means, axis=0), rel=0.25)
    falls = numpy.sqrt(numpy.mean([(each[:, 0] - each[:, -1]).var() for each in drawn]))
    assert falls == pytest.approx(numpy.std([each[0] - each[-1] for each in means]), rel=0.25)  # shared slices cancel


def test_the_vertex_is_the_planted_one_and_an_edge_is_said():
    places = [-11, -10, -9, -8, -7, -6]
    curve = 3 + 0.2 * (numpy.array(places) + 8.3) ** 2
    assert optimum.lowest(places, curve) == (pytest.approx(-8.3), 0)
    assert optimum.lowest(places, 3 + 0.2 * (numpy.array(places) + 12.0) ** 2) == (-11.0, -1)
    assert optimum.lowest(places, 3 + 0.2 * (numpy.array(places) + 2.0) ** 2) == (-6.0, 1)
    diverged = numpy.where(numpy.array(places) > -8, numpy.nan, curve)
    assert optimum.lowest(places, diverged) == (-8.0, 1)
    with pytest.raises(ValueError, match="no value"):
        optimum.lowest(places, numpy.full(6, numpy.nan))


def test_the_interval_of_an_optimum_is_over_seeds():
    places, vertices = [-11, -10, -9, -8, -7, -6], [-8.6, -8.3, -8.0, -8.3]
    values = numpy.array([3 + 0.2 * (numpy.array(places) - vertex) ** 2 for vertex in vertices])
    found = optimum.optimum(places, values)
    low, high = found.interval
    assert found.place == pytest.approx(-8.3) and -8.6 <= low < -8.35 and -8.25 < high <= -8.0
    assert not found.at_an_edge
    alone = optimum.optimum(places, values[:1])
    assert alone.replicates == () and numpy.isnan(alone.interval[0])
    steep = optimum.optimum(
        places, numpy.array([3 + 0.2 * (numpy.array(places) - vertex) ** 2 for vertex in (-6.8, -5)])
    )
    assert steep.at_an_edge
