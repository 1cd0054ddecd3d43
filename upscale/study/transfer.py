"""Where the best learning rate is at each width, and whether it moves: losses, optima and their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy

from upscale.report import canvas, multiples
from upscale.study import optimum
from upscale.study.grid import GridPlan, by_rate
from upscale.study.optimum import Optimum
from upscale.study.page import Page, Table, as_json, or_dash, with_interval

NOTE = (
    "log2 of the base learning rate at which the training loss ends lowest: the vertex of the parabola through "
    "the lowest rate and its two neighbours, of the mean over seeds, with the 95 % interval over seeds drawn "
    "again (a dash for one seed, which says nothing about others). At the edge: the lowest rate is the first or "
    "last one that finished, or an end of the interval is, so that the optimum may be beyond. Shift: against the "
    "smallest width, by the same draws of seeds. Paid: how much higher the loss is at the rate that was best at "
    "the smallest width than at this width's best. Loss in bits a byte, the mean of the last tenth of the logged "
    "steps."
)


@dataclass(frozen=True)
class Curve:
    """One width of one series: final losses over rates; bits per byte, NaN where a training diverged."""

    name: str
    width: int
    rates: tuple[float, ...]
    """log2, rising: those at which the same seeds have finished."""
    losses: numpy.ndarray
    """(seeds, rates)."""
    best: Optimum

    @property
    def means(self) -> numpy.ndarray:
        return self.losses.mean(axis=0)


def page(plan: GridPlan) -> Page:
    """Tables, the picture and the record of what has finished."""
    found = {label: curves(plan, points) for label, points in plan.series("width", "rate").items()}
    known = {label: lines for label, lines in found.items() if lines}
    tables = [Table(label or "the best rate", *_table(lines), NOTE) for label, lines in known.items()]
    panels = [_panel(plan, label, lines) for label, lines in known.items()]
    axes = "log2 of the base learning rate", "final loss (bits per byte)"
    pictures = {"rates": multiples.draw(panels, *axes, log_x=False)} if panels else {}
    return Page(
        tables, pictures, {"series": {label: [_record(one) for one in lines] for label, lines in known.items()}}
    )


def curves(plan: GridPlan, points: dict[str, str]) -> list[Curve]:
    """One for each width that has finished at a rate, smallest width first.

    Rates at which not all of the curve's seeds have finished are left out; a curve's seeds are those of its rate with
    most of them.
    """
    found = []
    for name, trained in plan.finished("width", points).items():
        runs = by_rate(trained)
        seeds = max(runs.values(), key=len).keys()
        rates = sorted(rate for rate, known in runs.items() if known.keys() == seeds)
        losses = numpy.array([[runs[rate][seed].final_loss for rate in rates] for seed in sorted(seeds)])
        if numpy.isfinite(losses.mean(axis=0)).any():
            width = trained[0][0].config.model.width
            found.append(Curve(name, width, tuple(rates), losses, optimum.optimum(rates, losses)))
    return sorted(found, key=lambda curve: curve.width)


def shift(curve: Curve, first: Curve) -> tuple[float, float, float]:
    """By how much the optimum has moved, in log2, and the 95 % interval of that over seeds (NaN for one seed)."""
    pairs = zip(curve.best.replicates, first.best.replicates, strict=False)
    moved = [here - there for here, there in pairs] if len(curve.losses) == len(first.losses) else []
    low, high = numpy.percentile(moved, optimum.INTERVAL) if moved else (math.nan, math.nan)
    return curve.best.place - first.best.place, float(low), float(high)


def paid(curve: Curve, first: Curve) -> float:
    """Bits by which the loss at the smallest width's best tried rate is above this width's lowest; NaN if untried."""
    rate = first.rates[int(numpy.nanargmin(first.means))]
    if rate not in curve.rates:
        return math.nan
    return float(curve.means[curve.rates.index(rate)] - numpy.nanmin(curve.means))


def _table(lines: Sequence[Curve]) -> tuple[list[str], list[list[str]]]:
    heads = ["width", "seeds", "rates", "best log2 rate", "shift", "lowest loss", "paid"]
    rows = []
    for curve in lines:
        moved = shift(curve, lines[0])
        edges = [one.name for one in (lines[0], curve) if one.best.at_an_edge]
        told = f"not determined: {edges[0]} is at the edge" if edges else with_interval(*moved, "+.2f")
        rows.append(
            [
                str(curve.width),
                str(len(curve.losses)),
                f"{curve.rates[0]:g} to {curve.rates[-1]:g}",
                with_interval(curve.best.place, *curve.best.interval, ".2f")
                + (", at the edge" * curve.best.at_an_edge),
                "" if curve is lines[0] else told,
                f"{numpy.nanmin(curve.means):.3f}",
                "" if curve is lines[0] else or_dash(paid(curve, lines[0]), "+.3f"),
            ]
        )
    return heads, rows


def _panel(plan: GridPlan, label: str, lines: Sequence[Curve]) -> multiples.Panel:
    names = list(plan.study.axes["width"])
    drawn = []
    for curve in lines:
        look = canvas.look_of(names.index(curve.name), marker_size=4)
        drawn.append(multiples.Line.of_seeds(f"width {curve.width}", curve.rates, curve.losses, look))
    return multiples.Panel(label or plan.study.name, drawn)


def _record(curve: Curve) -> dict:
    low, high = curve.best.interval
    best = {"log2_rate": curve.best.place, "low": low, "high": high, "at_an_edge": curve.best.at_an_edge}
    return as_json(asdict(curve) | {"losses": curve.losses.tolist(), "best": best})
