"""How lines look: apart where runs differ, also for colour-blind readers; and how they are smoothed and thinned."""

from __future__ import annotations

import itertools

import numpy
import pytest

from tests.report import many
from upscale.report import canvas
from upscale.report.runs import read_runs


def test_runs_that_differ_in_the_seed_only_look_alike_and_others_do_not(tmp_path):
    paths = many.write(tmp_path)
    runs = {run.name: run for run in read_runs(paths)}
    assert len(runs) == 20 and runs["lstm.w64-0"].look == runs["lstm.w64-1"].look
    assert len({run.look for run in runs.values()}) == 11, "nine pairs of seeds and the two fine-tunings"
    looks = [canvas.look_of(look) for look in range(20)]
    assert len({(look["color"], str(look["linestyle"])) for look in looks}) == 20


# Machado, Oliveira and Fernandes (2009), severity 1: what a reader without one kind of cone sees, in linear RGB.
COLOUR_BLIND = {
    "protanopia": [
        *((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    ],
    "deuteranopia": [
        *((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    ],
}


def lab(linear: numpy.ndarray) -> numpy.ndarray:
    """CIE L*a*b* of a colour in linear RGB (sRGB's primaries, D65)."""
    xyz = numpy.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    x, y, z = numpy.cbrt(numpy.maximum(xyz / [0.9505, 1.0, 1.089], 1e-6))
    return numpy.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("kind", COLOUR_BLIND)
def test_colour_blind_readers_can_tell_the_colours_apart(kind):
    """Distance in L*a*b* (2.3 is just noticeable) of any two; red and green of equal lightness fail it."""

    def seen(colour: str) -> numpy.ndarray:
        encoded = numpy.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
        linear = numpy.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
        return lab(numpy.clip(numpy.array(COLOUR_BLIND[kind]) @ linear, 0, 1))

    distances = [numpy.linalg.norm(seen(a) - seen(b)) for a, b in itertools.combinations(canvas.PALETTE, 2)]
    assert min(distances) > 15, distances
    assert numpy.linalg.norm(seen("#b05030") - seen("#607a30")) < 15


def test_smoothing_is_the_mean_of_the_neighbours_and_stops_at_breaks():
    values = numpy.arange(120.0)
    values[40] = numpy.nan
    expected = [numpy.nanmean(values[max(0, i - 1) : i + 2]) for i in range(120)]
    assert numpy.allclose(canvas.smoothed(values), expected)
    stairs = numpy.repeat([1.0, 5.0], 60)
    assert numpy.array_equal(canvas.smoothed(stairs, [60]), stairs)


def test_a_long_line_keeps_its_ends_spikes_and_gaps():
    x = numpy.arange(100_000.0)
    y = numpy.sin(x / 9000)
    y[31_234], y[77_001], y[50_000:51_000] = 9.0, -9.0, numpy.nan
    thin_x, thin_y = canvas.thinned(x, y)
    assert len(thin_x) < 1000 and (thin_x[0], thin_x[-1]) == (0, 99_999)
    assert numpy.nanmax(thin_y) == 9 and numpy.nanmin(thin_y) == -9 and numpy.isnan(thin_y).any()
    assert numpy.array_equal(thin_y, y[thin_x.astype(int)], equal_nan=True)
    assert canvas.thinned(x[:500], y[:500])[1] is not None and len(canvas.thinned(x[:500], y[:500])[0]) == 500
