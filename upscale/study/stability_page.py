"""The page of a stability study: the edge of every width and remedy, what announces it, and their pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict

from upscale.report import canvas, edge_map, multiples
from upscale.report.runs import UNKNOWN
from upscale.study import stability
from upscale.study.grid import GridPlan
from upscale.study.page import Page, Table, as_json, or_dash
from upscale.study.stability import SIGNALS, Edge

EDGE_NOTE = (
    "log2 of the base learning rate: the largest that was stable with all smaller ones, to the first that was not. "
    f"Stable: every loss and gradient is finite, the mean loss of {stability.SMOOTHED} logged steps is never more than "
    f"{stability.RISE} bits above the lowest before, and it ends below where it begins. Beyond: all that were tried "
    "are stable; below: none is. In brackets: the lowest final loss of the stable rates, bits per byte."
)
WIDTH_NOTE = (
    "Sensitivity: the mean over rates of the final loss, at most that at the start, above the lowest (Wortsman et al. "
    "2023): what a wrong rate costs. Signals: the largest in the run, over seeds, at the last stable rate and at the "
    "first that is not."
)


def page(plan: GridPlan) -> Page:
    """Tables, pictures and the record of what has finished."""
    series = {label: stability.edges(plan, points) for label, points in plan.series("width", "rate").items()}
    known = {label: found for label, found in series.items() if found}
    tables = [_compared(known)] if len(known) > 1 else []
    tables += [
        Table(label or "the edge", *_table(found), EDGE_NOTE + " " + WIDTH_NOTE) for label, found in known.items()
    ]
    pictures = (
        {"edge": edge_map.draw([_map(label or plan.study.name, found) for label, found in known.items()])}
        if known
        else {}
    )
    for name, label in SIGNALS.items():
        panels = [_panel(plan, title or plan.study.name, found, name) for title, found in known.items()]
        if any(panel.lines for panel in panels):
            pictures[name.split("_")[0]] = multiples.draw(panels, "log2 of the base learning rate", label, log_x=False)
    return Page(
        tables, pictures, {"series": {label: [_record(edge) for edge in found] for label, found in known.items()}}
    )


def _compared(known: dict[str, list[Edge]]) -> Table:
    """A row a remedy, a column a width."""
    widths = sorted({edge.width for found in known.values() for edge in found})
    rows = []
    for label, found in known.items():
        cells = {edge.width: f"{stability.edge_text(edge)} ({or_dash(edge.best[1])})" for edge in found}
        rows.append([label, *(cells.get(width, UNKNOWN) for width in widths)])
    return Table("the edge, by width", ["", *(f"width {width}" for width in widths)], rows, EDGE_NOTE)


def _table(found: Sequence[Edge]) -> tuple[list[str], list[list[str]]]:
    heads = ["width", "seeds", "edge", "beyond it", "lowest loss", "at", "sensitivity", *SIGNALS.values()]
    rows = []
    for edge in found:
        best_rate, loss = edge.best
        seeds = max(len(seeds) for seeds in edge.trials.values())
        beyond = stability.reasons(edge.trials[edge.unstable]) if not math.isnan(edge.unstable) else ""
        last = edge.stable[-1] if edge.stable else math.nan
        signals = [[or_dash(edge.signal(name, rate), ".3g") for rate in (last, edge.unstable)] for name in SIGNALS]
        best = [or_dash(loss), or_dash(best_rate, "g"), or_dash(edge.sensitivity)]
        rows.append([str(edge.width), str(seeds), stability.edge_text(edge), beyond, *best, *map(", ".join, signals)])
    return heads, rows


def _map(title: str, found: Sequence[Edge]) -> edge_map.Map:
    cells = {
        (edge.width, rate): (edge.final(rate), all(one.stable for one in seeds))
        for edge in found
        for rate, seeds in edge.trials.items()
    }
    return edge_map.Map(title, cells)


def _panel(plan: GridPlan, title: str, found: Sequence[Edge], signal: str) -> multiples.Panel:
    names = list(plan.study.axes["width"])
    lines = []
    for edge in found:
        points = [(rate, edge.signal(signal, rate)) for rate in edge.trials]
        points = [(rate, value) for rate, value in points if math.isfinite(value)]
        if points:
            x, y = zip(*points, strict=True)
            look = canvas.look_of(names.index(edge.name), marker_size=4)
            lines.append(multiples.Line(f"width {edge.width}", x, y, y, y, look))
    return multiples.Panel(title, lines)


def _record(edge: Edge) -> dict:
    trials = {
        f"{rate:g}": [asdict(one) | {"stable": one.stable} for one in seeds] for rate, seeds in edge.trials.items()
    }
    own = {"last_stable": edge.stable[-1] if edge.stable else None, "first_unstable": edge.unstable}
    return as_json({"name": edge.name, "width": edge.width, **own, "sensitivity": edge.sensitivity, "trials": trials})
