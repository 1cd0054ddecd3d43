"""One panel on a canvas of its own: looks, legends, smoothing; as SVG in the page, and as PNG and SVG for papers."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy

from upscale.console.text import harmless
from upscale.report.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Look = dict[str, Any]
"""How matplotlib draws a line: colour, dashes, marker."""

# Okabe and Ito's colours, which colour-blind readers can tell apart, without its yellow (too pale on white) and its
# black (kept for the optimum). Marker and dash change with the colour, for print in grey and for more than six runs.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKOV: Look = {"color": "#6b6b6b", "linestyle": (0, (5, 3)), "linewidth": 1.5}
OPTIMUM: Look = {"color": "#000000", "linestyle": (0, (1, 1.2)), "linewidth": 1.8}
INSTANCES = "instances seen (rows)"
_MARKERS = "osD^vP"
_DASHES = ("-", (0, (5, 1.5)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_WIDTH_INCHES, _PAGE_INCHES, _AXES_INCHES, LEGEND_LINE_INCHES = 4.6, 2.8, 3.0, 0.19
# two columns of longer labels would run out of the panel
_TWO_COLUMNS_LETTERS = 22
_DOTS_PER_INCH = 190
SMALL_COLUMNS, _SMALL_INCHES, _SMALL_DOTS_PER_INCH = 3, 4.2, 140
_POINTS = 300
MOST_WITH_BANDS = 6
"""With more runs than colours, error bands, markers and single steps hide more than they show."""
# What is drawn in these colours takes those of the page, light or dark.
_OF_PAGE = {"#000000": "currentColor", "#777777": "var(--soft)", "#6b6b6b": "var(--soft)", "#e4e4e4": "var(--line)"}
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
    "svg.hashsalt": "upscale",
}


def name_of(index: int) -> str:
    """What the lines of the run at this place are called in an SVG."""
    return f"run-{index}"


def slug(text: str) -> str:
    """A file's name of letters, digits and dashes that reminds of a text."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unnamed"


def colour_of(index: int) -> str:
    """The colour of this look, the same in every picture and in the tables."""
    return PALETTE[index % len(PALETTE)]


def look_of(index: int, *, marker_size: float = 0) -> Look:
    """How the lines of this look are drawn; markers of `marker_size` points, none at 0."""
    dash = _DASHES[(index // len(PALETTE)) % len(_DASHES)]
    marker = _MARKERS[index % len(_MARKERS)] if marker_size else None
    look = {"color": colour_of(index), "linestyle": dash, "linewidth": 1.8}
    return look | {"marker": marker, "markersize": marker_size}


@dataclass(frozen=True)
class Sample:
    """How a line looks, as attributes of an SVG of 30 by 12 units."""

    colour: str
    dashes: str
    marker: str
    """The path of its marker, in the middle."""


_MARKER_PATHS = {
    "o": "M11.5 6a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0",
    "s": "M12 3h6v6h-6z",
    "D": "M15 2l4 4-4 4-4-4z",
    "^": "M15 2l4 7h-8z",
    "v": "M15 10l4-7h-8z",
    "P": "M13.7 2h2.6v2.7h2.7v2.6h-2.7v2.7h-2.6v-2.7h-2.7v-2.6h2.7z",
}


def sample_of(index: int) -> Sample:
    """What `look_of` draws, for the page's own legend."""
    look = look_of(index, marker_size=1)
    dashes = "" if look["linestyle"] == "-" else " ".join(f"{2 * length:g}" for length in look["linestyle"][1])
    return Sample(look["color"], dashes, _MARKER_PATHS[look["marker"]])


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
        (look_of(run.look, marker_size=marker_size), shortened(run.name, 44))
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
            own: Look = {"color": colour_of(run.look), "gid": name_of(index)}
            axes.plot(*at, marker="|", markersize=12, markeredgewidth=1.6, **own)
            look: Look = {"textcoords": "offset points", "fontsize": 9, **own}
            axes.annotate(f"{run.metrics[place].world_size} ranks", at, (4, 7), **look)
    return "A tick marks where a run went on with another number of ranks." if changed else ""


@dataclass(frozen=True)
class Drawing:
    markup: str
    """SVG to stand in the page, which has title, unit and legend around it: its lines are in groups with `data-run`,
    and what is not a run's takes the colours of the page's text."""
    files: dict[str, bytes]
    """For papers, with title and legend: content by ending, png and svg; empty where it was not asked for."""


Legend = Sequence[tuple[Look, str]]


@contextmanager
def styled() -> Iterator[None]:
    """For a function that draws: our style and no other's, and no warning of a letter that the font lacks."""
    import matplotlib.style

    with matplotlib.style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


@styled()
def render(
    title: str, x_label: str, y_label: str, lines: Callable[[Axes], None], legend: Legend, files: bool = True
) -> Drawing:
    """One panel, drawn with `lines`, without date or version.

    No pyplot and no settings left behind: a caller's figures stay as they are, and its matplotlibrc changes no byte.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import EngFormatter, FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

    figure = Figure(figsize=(_WIDTH_INCHES, _PAGE_INCHES), dpi=_DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    lines(axes)
    if x_label == INSTANCES:
        axes.xaxis.set_major_locator(LogLocator() if axes.get_xscale() == "log" else MaxNLocator(5))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    low, high = axes.get_ylim()
    if axes.get_yscale() == "log":
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif high >= 2000:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # the page's own font
        markup = _in_page(_saved(figure, "svg", transparent=True).decode())
    if not files:
        return Drawing(markup, {})
    labels = [label for _, label in legend]
    columns = 2 if all(len(label) <= _TWO_COLUMNS_LETTERS for label in labels) else 1
    figure.set_size_inches(_WIDTH_INCHES, _AXES_INCHES + LEGEND_LINE_INCHES * math.ceil(len(labels) / columns))
    axes.set_title(plain(shortened(title, 40)), loc="left")
    axes.set_ylabel(plain(y_label))
    handles = [Line2D([], [], **look) for look, _ in legend]
    spacing = {"handlelength": 2.4, "columnspacing": 1.4}
    figure.legend(handles, list(map(plain, labels)), loc="outside lower center", ncols=columns, **spacing)
    return Drawing(markup, both(figure))


def small_multiples(count: int, height_inches: float, room_inches: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure with its canvas, and axes for `count` panels in rows of three, each _SMALL_INCHES wide and so high.

    `room_inches` is left beside the panels and below them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(SMALL_COLUMNS, count)
    rows = math.ceil(count / columns)
    size = (_SMALL_INCHES * columns + room_inches[0], height_inches * rows + room_inches[1])
    figure = Figure(figsize=size, dpi=_SMALL_DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes


_METADATA: dict[str, dict[str, None]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}


def _saved(figure: Figure, ending: str, **options: bool) -> bytes:
    """The figure's bytes, which depend on nothing but what is drawn."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=ending, metadata=_METADATA[ending], **options)
    return buffer.getvalue()


def both(figure: Figure) -> dict[str, bytes]:
    """A figure with its canvas as png and svg, by ending."""
    png = _saved(figure, "png")
    figure.set_layout_engine("none")  # what stands where is known now
    return {"png": png, "svg": _saved(figure, "svg")}


def _in_page(svg: str) -> str:
    """The SVG element alone, without what several in one page would have in common: names of elements."""
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<\?xml.*?\?>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<g id="run-(\d+)">', r'<g data-run="\1">', svg)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", r"<svg \1>", svg, count=1)
    for colour, name in _OF_PAGE.items():
        svg = svg.replace(colour, name)
    return re.sub(r"\n\s*", "\n", svg)


def thinned(x: numpy.ndarray, y: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """The same line in at most about 2 * _POINTS points: the lowest and the highest of each stretch of neighbours."""
    if len(y) <= 2 * _POINTS:
        return x, y
    kept = set()
    for part in numpy.array_split(numpy.arange(len(y)), _POINTS):
        known = part[numpy.isfinite(y[part])]
        if len(known) < len(part):
            kept.add(int(part[~numpy.isfinite(y[part])][0]))  # the gap stays one
        if len(known):
            kept |= {int(known[y[known].argmin()]), int(known[y[known].argmax()])}
    places = numpy.array(sorted(kept | {0, len(y) - 1}))
    return x[places], y[places]


def shortened(text: str, most: int) -> str:
    """The text's head and tail within `most` letters: run names differ at their ends."""
    if len(text) <= most:
        return text
    head = most // 2 - 1
    return f"{text[:head]}…{text[-(most - head - 1) :]}"


def plain(text: str) -> str:
    """Text that matplotlib draws as it stands: no mathematics between dollars, no line of its own."""
    return " ".join(harmless(text).split()).replace("$", r"\$")
