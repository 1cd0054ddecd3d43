"""Small multiples: one panel a task or recipe, the same lines in each, as one PNG and SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy

from upscale.report import canvas

_LETTERS = 49
"""Of the legend, below one panel."""
_LEGEND_LINES = 2
"""That have room anyway; a longer legend makes the picture higher."""
_HEIGHT_INCHES = 3.0


Values = Sequence[float] | numpy.ndarray


@dataclass(frozen=True)
class Line:
    """One line of a panel; its values have one length."""

    label: str
    x: Values
    y: Values
    low: Values
    """Of a band around y: the lowest of several seeds, or the end of an interval."""
    high: Values
    look: canvas.Look
    points: bool = False
    """Points with bars instead of a line with a band."""

    @classmethod
    def of_seeds(cls, label: str, x: Values, values: numpy.ndarray, look: canvas.Look) -> Line:
        """The mean of `values` (seeds, len(x)), in a band from the lowest seed to the highest."""
        return cls(label, x, values.mean(axis=0), values.min(axis=0), values.max(axis=0), look)


@dataclass(frozen=True)
class Panel:
    title: str
    lines: Sequence[Line]
    levels: Sequence[tuple[str, float, canvas.Look]] = field(default=())
    """Horizontal lines: label, height, look."""


@canvas.styled()
def draw(panels: Sequence[Panel], x_label: str, y_label: str, log_x: bool) -> dict[str, bytes]:
    """The panels in rows of three, with one legend, as png and svg by ending; they depend on nothing but the data.

    The first quarter of a line may be above its panel: every model begins near 8 bits, which would press the rest
    together.
    """
    from matplotlib.ticker import EngFormatter

    figure, places = canvas.small_multiples(len(panels), _HEIGHT_INCHES, (0.0, 0.6))
    handles: dict = {}
    for axes, panel in zip(places, panels, strict=False):
        if log_x:
            axes.set_xscale("log")
        for line in panel.lines:
            handles.setdefault(line.label, _draw_line(axes, line))
        shown = [value for line in panel.lines for value in _later(line.low) + _later(line.high)]
        for label, height, look in panel.levels:
            handles.setdefault(label, axes.axhline(height, **look))
            shown.append(height)
        shown = [value for value in shown if math.isfinite(value)]
        if shown:
            room = max(max(shown) - min(shown), 0.02)
            axes.set_ylim(max(0.0, min(shown) - 0.08 * room), max(shown) + 0.08 * room)
        if not log_x and axes.get_xlim()[1] >= 2000:
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_title(canvas.plain(panel.title), loc="left")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
    labels = [canvas.plain(canvas.shortened(label, 44)) for label in handles]
    across = _LETTERS * min(canvas.SMALL_COLUMNS, len(panels)) // (max(map(len, labels), default=0) + 6)
    ncols = max(1, min(6, len(labels), across))
    longer = max(0, math.ceil(len(labels) / ncols) - _LEGEND_LINES)
    figure.set_figheight(figure.get_figheight() + canvas.LEGEND_LINE_INCHES * longer)
    figure.legend(handles.values(), labels, loc="outside lower center", ncols=ncols)
    return canvas.both(figure)


def _draw_line(axes, line: Line):
    x, y, low, high = (numpy.array(values, float) for values in (line.x, line.y, line.low, line.high))
    if line.points:
        look = line.look | {"linestyle": "none"}
        return axes.errorbar(x, y, [y - low, high - y], capsize=2.5, elinewidth=1.2, **look)
    axes.fill_between(x, low, high, color=line.look["color"], alpha=0.15, linewidth=0)
    return axes.plot(x, y, **line.look)[0]


def _later(values: Values) -> list[float]:
    """What the axis must have room for: all but the first quarter of a long line."""
    return list(values)[len(values) // 4 if len(values) > 7 else 0 :]
