"""One panel on a canvas of its own: colours, legends, smoothing, and PNG bytes that depend on nothing but the data."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy

from upscale.console.text import harmless
from upscale.report.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind readers can tell apart, without its yellow (too pale on white) and its
# black (kept for the optimum). Marker and dash change with the colour, for print in grey and for more than six runs.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKOV = {"color": "#6b6b6b", "linestyle": (0, (5, 3)), "linewidth": 1.5}
OPTIMUM = {"color": "black", "linestyle": (0, (1, 1.2)), "linewidth": 1.8}
INSTANCES = "instances seen (rows)"
_MARKERS = "osD^vP"
_DASHES = ("-", (0, (5, 1.5)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_WIDTH_INCHES, _AXES_INCHES, _LEGEND_LINE_INCHES = 4.6, 3.0, 0.19
# two columns of longer labels would run out of the panel
_TWO_COLUMNS_LETTERS = 22
_DOTS_PER_INCH = 190
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.edgecolor": "#777777",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "agg.path.chunksize": 20000,
}

Look = dict[str, Any]
"""How matplotlib draws a line: colour, dashes, marker."""


def colour_of(index: int) -> str:
    """The colour of the run at this place, the same in every picture and in the tables."""
    return PALETTE[index % len(PALETTE)]


def look_of(index: int, *, marker_size: float = 0) -> Look:
    """How the run at this place is drawn; markers of `marker_size` points, none at 0."""
    dash = _DASHES[(index // len(PALETTE)) % len(_DASHES)]
    marker = _MARKERS[index % len(_MARKERS)] if marker_size else None
    look = {"color": colour_of(index), "linestyle": dash, "linewidth": 1.8}
    return look | {"marker": marker, "markersize": marker_size}


def smoothing_window(count: int) -> int:
    """How many neighbouring logged steps the thick line averages: a fortieth of them."""
    return max(1, count // 40)


def smoothed(values: numpy.ndarray, breaks: Sequence[int] = ()) -> numpy.ndarray:
    """Centred running mean that leaves out NaN, shape (steps,).

    At the ends, and at the places in `breaks`, the window is cut: no mean reaches across a change of the world.
    """
    window = smoothing_window(len(values))
    parts = numpy.split(values, breaks)
    return values if window == 1 else numpy.concatenate([_running_mean(part, window) for part in parts])


def _running_mean(values: numpy.ndarray, window: int) -> numpy.ndarray:
    known = numpy.isfinite(values)
    sums = numpy.concatenate([[0.0], numpy.cumsum(numpy.where(known, values, 0.0))])
    counts = numpy.concatenate([[0], numpy.cumsum(known)])
    place = numpy.arange(len(values))
    low, high = numpy.maximum(place - window // 2, 0), numpy.minimum(place + (window + 1) // 2, len(values))
    number = counts[high] - counts[low]
    return numpy.where(number > 0, (sums[high] - sums[low]) / numpy.maximum(number, 1), numpy.nan)


def legend_of(runs: Sequence[Run], *, marker_size: float = 0, only: Sequence[bool] | None = None) -> list:
    """A legend entry (look, label) for each run, or for those that `only` marks."""
    return [
        (look_of(index, marker_size=marker_size), _shortened(run.name, 44))
        for index, run in enumerate(runs)
        if only is None or only[index]
    ]


def cut_axis(axes: Axes, values: numpy.ndarray, top: float) -> str:
    """Cut the axis at `top` bits where values go beyond it, and return the words for it."""
    highest = numpy.nanmax(values)
    if highest <= top:
        return ""
    axes.set_ylim(top=top)
    return f"Axis cut at {top:.1f} bits; the highest value is {highest:.2f}."


def mark_worlds(axes: Axes, runs: Sequence[Run], series: Sequence[numpy.ndarray]) -> str:
    """Name the number of ranks where a run continued with another, and return the words for it."""
    changed = False
    for index, (run, values) in enumerate(zip(runs, series, strict=True)):
        heights = smoothed(values, run.world_changes)
        for place in run.world_changes:
            at = (run.instances[place], heights[place])
            if not all(map(math.isfinite, at)):
                continue
            changed = True
            axes.plot(*at, marker="|", markersize=12, markeredgewidth=1.6, color=colour_of(index))
            look: Look = {"textcoords": "offset points", "fontsize": 9, "color": colour_of(index)}
            axes.annotate(f"{run.metrics[place].world_size} ranks", at, (4, 7), **look)
    return "A tick marks where a run went on with another number of ranks." if changed else ""


def render(title: str, y_label: str, lines: Callable[[Axes], None], legend: Sequence[tuple[Look, str]]) -> bytes:
    """Draw one panel with `lines` and return it as PNG, without date or version.

    No pyplot and no settings left behind: a caller's figures stay as they are, and its matplotlibrc changes no byte.
    """
    import matplotlib.style

    with matplotlib.style.context(["default", STYLE]), warnings.catch_warnings():
        # a run name may hold a letter that the font lacks; the page beside it has the name in full
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        return _render(title, y_label, lines, legend)


def _render(title: str, y_label: str, lines: Callable[[Axes], None], legend: Sequence[tuple[Look, str]]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import EngFormatter, FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

    labels = [label for _, label in legend]
    columns = 2 if all(len(label) <= _TWO_COLUMNS_LETTERS for label in labels) else 1
    height = _AXES_INCHES + _LEGEND_LINE_INCHES * math.ceil(len(labels) / columns)
    figure = Figure(figsize=(_WIDTH_INCHES, height), dpi=_DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel(INSTANCES)
    axes.set_ylabel(_plain(y_label))
    axes.set_title(_plain(_shortened(title, 40)), loc="left")
    lines(axes)
    axes.xaxis.set_major_locator(LogLocator() if axes.get_xscale() == "log" else MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    low, high = axes.get_ylim()
    if axes.get_yscale() == "log":
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif high >= 2000:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    handles = [Line2D([], [], **look) for look, _ in legend]
    spacing = {"handlelength": 2.4, "columnspacing": 1.4}
    figure.legend(handles, list(map(_plain, labels)), loc="outside lower center", ncols=columns, **spacing)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _shortened(text: str, most: int) -> str:
    """The text's head and tail within `most` letters: run names differ at their ends."""
    if len(text) <= most:
        return text
    head = most // 2 - 1
    return f"{text[:head]}…{text[-(most - head - 1) :]}"


def _plain(text: str) -> str:
    """Text that matplotlib draws as it stands: no mathematics between dollars, no line of its own."""
    return " ".join(harmless(text).split()).replace("$", r"\$")
