"""Pictures of what runs have learnt, from the newest `upscale evaluate --diagnostics` of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy

from upscale.evaluation.record import DiagnosticsRecord, TextDiagnostics
from upscale.report import canvas
from upscale.report.picture import Picture
from upscale.report.runs import Run, task_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = tuple[Sequence[float], Sequence[float | None]]
"""Places on the horizontal axis and the values there; None where one is not known."""


@dataclass(frozen=True)
class _Probe:
    """One panel: what each run's records say, and what stands around it."""

    slug: str
    title: str
    x_label: str
    unit: str
    points: Callable[[Run], Points]
    note: str
    powers: bool = False
    """The horizontal axis is logarithmic, with the powers of two."""
    top: float | None = None
    diagonal: bool = False
    """A line where both axes are equal."""


_BACK = "bytes back"
_PROBES = (
    _Probe(
        *("induction", "Induction", _BACK, "bits of a repeated byte"),
        lambda run: (_newest(run).distances, _newest(run).induction_bits),
        "Random bytes that repeat after so many: 8 is guessing, 0 is looking up what followed.",
        powers=True,
    ),
    _Probe(
        *("copied", "Copying", _BACK, "share of repeated bytes guessed right"),
        lambda run: (_newest(run).distances, _newest(run).copy_accuracy),
        "Of the same rows, how often the most likely byte is the right one.",
        powers=True,
        top=1.0,
    ),
    _Probe(
        *("needles", "Needle in a haystack", "distance, quarters of the row", "share of values found by their key"),
        lambda run: (range(1, 1 + len(_newest(run).needle_recall)), _newest(run).needle_recall),
        "Guessing a letter finds 1 of 26.",
        top=1.0,
    ),
    _Probe(
        *("induction-by-rows", "Induction while training", canvas.INSTANCES, "bits of a repeated byte"),
        lambda run: (
            [record.instances for record in run.diagnostics],
            [float(numpy.mean(record.induction_bits or [math.nan])) for record in run.diagnostics],
        ),
        "Mean over the distances, of every checkpoint that was looked at.",
    ),
)


def draw(runs: Sequence[Run], files: bool) -> list[Picture]:
    """The pictures that any run has numbers for; none without diagnostics."""
    probes = [*_PROBES, *(probe for key in texts_of(runs) for probe in _text_probes(key))]
    pictures = [_draw(probe, runs, files) for probe in probes]
    return [picture for picture in pictures if picture is not None]


def texts_of(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Task and split of the texts that any run's newest diagnostics are of, in the order the first run met them."""
    newest = [run.diagnostics[-1] for run in runs if run.diagnostics]
    return list(dict.fromkeys((text.task, text.split or "") for record in newest for text in record.texts))


def text_of(run: Run, key: tuple[str, str]) -> TextDiagnostics | None:
    """What the run's newest diagnostics say of a text."""
    texts = run.diagnostics[-1].texts if run.diagnostics else []
    return next((text for text in texts if (text.task, text.split or "") == key), None)


def _text_probes(key: tuple[str, str]) -> list[_Probe]:
    title, name = task_title(key), canvas.slug(" ".join(key))

    def positions(run: Run) -> Points:
        found = text_of(run, key)
        return (found.positions, found.bits_by_position) if found else ((), ())

    def calibration(run: Run) -> Points:
        found = text_of(run, key)
        if found is None:
            return (), ()
        bins = zip(found.calibration_counts, found.calibration_confidence, found.calibration_accuracy, strict=True)
        filled = [(sure, right) for count, sure, right in bins if count > 0]
        return [sure for sure, _ in filled], [right for _, right in filled]

    return [
        _Probe(
            *(f"positions-{name}", f"{title}: use of context", "characters before", "bits per character"),
            positions,
            "By how much of the text stands before; they fall as far as the model uses context.",
            powers=True,
        ),
        _Probe(
            *(f"calibration-{name}", f"{title}: calibration", "probability of the most likely byte", "share right"),
            calibration,
            "Below the dotted line a model is surer than it is right.",
            top=1.0,
            diagonal=True,
        ),
    ]


def _newest(run: Run) -> DiagnosticsRecord:
    return run.diagnostics[-1]


def _draw(probe: _Probe, runs: Sequence[Run], files: bool) -> Picture | None:
    """The picture, or None where no run has a number, or none that changes while it trains."""
    found = [probe.points(run) if run.diagnostics else ((), ()) for run in runs]
    series = [tuple(numpy.array(values, dtype=float) for values in points) for points in found]
    if not any(numpy.isfinite(y).any() for _, y in series):
        return None
    if probe.x_label == canvas.INSTANCES and max(len(x) for x, _ in series) < 2:
        return None
    few = len(runs) <= canvas.MOST_WITH_BANDS

    def lines(axes: Axes) -> None:
        for index, (run, (x, y)) in enumerate(zip(runs, series, strict=True)):
            look = canvas.look_of(run.look, marker_size=3.5) | {"gid": canvas.name_of(index)}
            if not few:
                look |= {"linewidth": 1.3, "markevery": [-1] if len(x) else None}
            axes.plot(x, y, **look)
        if probe.diagonal:
            axes.plot([0, 1], [0, 1], **canvas.OPTIMUM)
            axes.set_xlim(0, 1)
        if probe.powers:
            axes.set_xscale("log", base=2)
            places = sorted({place for x, _ in series for place in x})
            axes.set_xticks(places, [f"{place:g}" for place in places], minor=False)
        if probe.slug == "needles":
            axes.set_xticks(range(1, 1 + max(len(x) for x, _ in series)))
        axes.set_ylim(0, probe.top)

    only = [bool(len(x)) for x, _ in series]
    legend = canvas.legend_of(runs, marker_size=3.5, only=only)
    drawing = canvas.render(probe.title, probe.x_label, probe.unit, lines, legend, files)
    told = [f"{run.name} {_first_to_last(y)}" for run, (x, y) in zip(runs, series, strict=True) if len(x)]
    alt = f"{probe.title}: {probe.unit} over {probe.x_label}. From first to last: {'; '.join(told)}."
    return Picture("learnt", probe.slug, probe.title, probe.unit, alt, probe.note, drawing)


def _first_to_last(values: numpy.ndarray) -> str:
    return " to ".join(f"{values[place]:.3g}" for place in (0, -1)) if len(values) else "unknown"
