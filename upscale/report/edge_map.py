"""Maps of rate and width: a cell a training, coloured by its final loss, crossed out where training was not stable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from upscale.report import canvas

_HEIGHT_INCHES = 2.6


@dataclass(frozen=True)
class Map:
    title: str
    cells: dict[tuple[int, float], tuple[float, bool]]
    """(width, log2 of the rate) -> (final loss in bits per byte, NaN where it diverged; whether it was stable)."""


@canvas.styled()
def draw(maps: Sequence[Map]) -> dict[str, bytes]:
    """A picture, as png and svg, with one map beside the other, on one scale of colours.

    The line is the edge: right of it nothing that was tried is stable, or one smaller rate was not."""
    figure, places = canvas.small_multiples(len(maps), _HEIGHT_INCHES, (0.8, 0.4))
    losses = [loss for one in maps for loss, _ in one.cells.values() if math.isfinite(loss)]
    limits = (min(losses), max(losses)) if losses else (0.0, 1.0)
    image: Any = None
    for axes, one in zip(places, maps, strict=False):
        image = _draw_map(axes, one, limits)
    figure.colorbar(image, ax=places, label="final loss (bits per byte)")
    return canvas.both(figure)


def _draw_map(axes, one: Map, limits: tuple[float, float]):
    widths, rates = sorted({width for width, _ in one.cells}), sorted({rate for _, rate in one.cells})
    values = numpy.full((len(widths), len(rates)), numpy.nan)
    for (width, rate), (loss, _) in one.cells.items():
        values[widths.index(width), rates.index(rate)] = loss
    axes.set_facecolor("0.8")
    image = axes.pcolormesh(values, vmin=limits[0], vmax=limits[1], cmap="viridis_r", edgecolors="white", linewidth=1)
    for row, width in enumerate(widths):
        stable = [one.cells.get((width, rate), (math.nan, True))[1] for rate in rates]
        crossed = [place + 0.5 for place, fine in enumerate(stable) if not fine]
        axes.plot(crossed, [row + 0.5] * len(crossed), "x", color="crimson", markersize=9, markeredgewidth=2)
        edge = stable.index(False) if False in stable else len(rates)
        axes.plot([edge, edge], [row, row + 1], color="crimson", linewidth=2.5)
    axes.set_xticks([place + 0.5 for place in range(len(rates))], [f"{rate:g}" for rate in rates])
    axes.set_yticks([place + 0.5 for place in range(len(widths))], [str(width) for width in widths])
    axes.set_title(one.title, loc="left")
    axes.set_xlabel("log2 of the base learning rate")
    axes.set_ylabel("width")
    axes.grid(False)
    return image
