"""The page of a scaling study: its tables, its pictures, and the numbers they are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy

from upscale import planning
from upscale.config import Config
from upscale.machine.gpus import DEVICES
from upscale.planning import memory
from upscale.planning.communication import Cluster
from upscale.planning.estimate import alternatives
from upscale.report import canvas, multiples
from upscale.report.figures import levels_of
from upscale.report.runs import UNKNOWN, TaskKey, task_title, value
from upscale.study import grid_finetuning, laws, optimum
from upscale.study.grid import GridPlan, flops_of
from upscale.study.grid_finetuning import Pair
from upscale.study.laws import Fit
from upscale.study.page import Page, Table, as_json, or_dash, with_interval
from upscale.study.scaling import MARKOV, OPTIMAL, Series, TaskLaws, Width, collect
from upscale.study.schema import Hardware

BITS_NOTE = (
    "Bits per character at the end of the training, without fine-tuning; of several seeds the mean (lowest to highest)."
)
GAP_NOTE = (
    "By how much a width is below the in-context Markov baseline (+: it learnt more from its context than "
    "counting does), and how far it is above the optimum where that is known."
)
LAW_NOTE = (
    "L = E + A / N^a of the parameters N, at equal rows. Intervals: 95 %, over slices and seeds drawn again (one "
    "seed says nothing of others: the interval is then of slices only). Residual: the largest, in standard "
    "errors. Held out: what the law of all widths but the largest foretells of that one, and what was measured. "
    f"Determined, by our rule: at least {laws.LEAST_SIZES} widths; bits fall by more than their 95 % interval; "
    f"the interval of a is inside {laws.EXPONENTS[0]:g} to {laws.EXPONENTS[1]:g}, its end at most "
    f"{laws.WIDEST_RATIO:g} times its begin; no residual above {laws.LARGEST_RESIDUAL:g} standard errors. A law "
    "says nothing about why, and less the further it is stretched."
)
FRONTIER_NOTE = (
    "Up to how many floating-point operations a width is the best of those tried, by the evaluations during "
    "training (rates that have not come down at the end favour none); a dash: never the best. The law L = E + A "
    "/ C^c is of these last points, under the same rule."
)
EQUAL_FLOPS_NOTE = (
    "Every training took equally many operations. Best: the vertex of the parabola through the lowest width and "
    "its two neighbours, over log2 of the parameters, with the 95 % interval over seeds; a dash for one seed."
)
NEXT_NOTE = "What the laws of the parameters say of a width that was not trained, and what training it would take."


def page(plan: GridPlan) -> Page:
    """Tables, pictures and record of what has finished."""
    found = Page(record={"series": {}})
    for series in collect(plan):
        known = {key: series.laws(key, plan.study.flops is not None) for key in series.tasks}
        found.tables.extend(_tables(plan, series, known))
        prefix = f"{series.label.replace(', ', '-')}-" if series.label else ""
        for name, picture in _pictures(series, known).items():
            found.pictures[prefix + name] = picture
        found.record["series"][series.label] = as_json(_record(series, known))
        for name, wanted in plan.study.finetune.items():
            about = f"{series.label}: " if series.label else ""
            tuned = grid_finetuning.page(f"{about}fine-tuned on {name}", wanted, _pairs(plan, series, name))
            found.tables.extend(tuned.tables)
            found.pictures.update({f"{prefix}finetune-{name}": picture for picture in tuned.pictures.values()})
            found.record["series"][series.label][f"finetune_{name}"] = as_json(tuned.record)
    return found


def _pairs(plan: GridPlan, series: Series, name: str) -> list[tuple[int, int, list[Pair]]]:
    """The fine-tunings of each width of a series: the places are those of its trainings."""
    points = plan.series("width")[series.label]
    found = []
    for one in series.widths:
        (place,) = plan.places(**points, width=one.name)
        pairs = [plan.finetunings[name][place, seed] for seed in plan.study.seeds]
        found.append((one.config.model.width, one.parameters, pairs))
    return found


def _tables(plan: GridPlan, series: Series, known: dict[TaskKey, TaskLaws]) -> list[Table]:
    about = f"{series.label}: " if series.label else ""
    tables = [_of_widths(series), _of_bits(series), _of_gaps(series)]
    if not known:
        return [tables[0]]
    tables += [_of_equal_flops(series)] if plan.study.flops is not None else [_of_laws(series, known)]
    tables.append(_of_frontier(series, known))
    if plan.next is not None and plan.study.next is not None:
        tables.append(_of_next(plan.next, plan.study.next.hardware, series, known))
    return [Table(about + table.title, table.heads, table.rows, table.note) for table in tables]


def _of_widths(series: Series) -> Table:
    heads = ["width", "blocks", "parameters", "rows", "tokens", "operations", "rank hours", "seeds"]
    rows = []
    for one in series.widths:
        model, tokens = one.config.model, one.instances * one.config.model.context
        counts = [f"{one.parameters:,}", f"{one.instances:,}", f"{tokens:,}", f"{one.flops:.2e}", f"{one.hours:.2f}"]
        rows.append([str(model.width), str(model.depth), *counts, str(len(one.runs))])
    return Table("the widths", heads, rows, "Operations, hours of all ranks together and rows are of one training.")


def _of_bits(series: Series) -> Table:
    heads = ["task", *(f"width {one.config.model.width}" for one in series.widths), "Markov", "optimum"]
    rows = []
    for key in series.tasks:
        cells = []
        for one in series.widths:
            sample = one.sample(key)
            cells.append(with_interval(sample.mean, min(sample.bits), max(sample.bits), ".3f") if sample else UNKNOWN)
        levels = [or_dash(series.level(key, field)) for field in (MARKOV, OPTIMAL)]
        rows.append([task_title(key), *cells, *levels])
    return Table("bits per character", heads, rows, BITS_NOTE)


def _of_gaps(series: Series) -> Table:
    names = [f"width {one.config.model.width}" for one in series.widths]
    heads = ["task", *(f"below Markov, {name}" for name in names), *(f"above optimum, {name}" for name in names)]
    rows = []
    for key in series.tasks:
        measured = [one.sample(key) for one in series.widths]
        ends = [sample.mean if sample else math.nan for sample in measured]
        markov, optimal = series.level(key, MARKOV), series.level(key, OPTIMAL)
        below, above = [or_dash(markov - end, "+.3f") for end in ends], [or_dash(end - optimal, "+.3f") for end in ends]
        rows.append([task_title(key), *below, *above])
    return Table("the gap to the baseline and to the optimum", heads, rows, GAP_NOTE)


def _of_laws(series: Series, known: dict[TaskKey, TaskLaws]) -> Table:
    heads = ["task", "E, bits", "a", "residual", "held out: foretold", "measured", "verdict"]
    rows = []
    for key, found in known.items():
        fit, held = found.by_parameters, found.held_out
        if fit is None:
            rows.append([task_title(key), *[UNKNOWN] * 5, "not determined: fewer than 3 widths"])
            continue
        worst = max(abs(r) / e for r, e in zip(fit.residuals, fit.errors, strict=True))
        largest, sample = series.measured(key)[-1]
        foretold = (
            with_interval(*held.predicted(largest.parameters), ".3f") if held and not held.undetermined else UNKNOWN
        )
        rows.append([task_title(key), *_law(fit), f"{worst:.1f}", foretold, f"{sample.mean:.3f}", _verdict(fit)])
    return Table("laws of the parameters", heads, rows, LAW_NOTE)


def _law(fit: Fit) -> list[str]:
    """E and the exponent, with their intervals, where they are determined."""
    if fit.undetermined:
        return [UNKNOWN, UNKNOWN]
    return [with_interval(getattr(fit.law, name), *fit.interval(name), ".3f") for name in ("irreducible", "exponent")]


def _verdict(fit: Fit) -> str:
    return f"not determined: {fit.undetermined}" if fit.undetermined else "determined"


def _of_frontier(series: Series, known: dict[TaskKey, TaskLaws]) -> Table:
    heads = ["task", *(f"width {one.config.model.width} up to" for one in series.widths), "E, bits", "c", "verdict"]
    rows = []
    for key, found in known.items():
        last = {handover.width.name: f"{handover.flops:.2e}" for handover in found.frontier}
        verdict = (
            _verdict(found.by_flops) if found.by_flops else "not determined: fewer than 3 widths are ever the best"
        )
        fitted = _law(found.by_flops) if found.by_flops else [UNKNOWN, UNKNOWN]
        rows.append([task_title(key), *(last.get(one.name, UNKNOWN) for one in series.widths), *fitted, verdict])
    return Table("the frontier of compute", heads, rows, FRONTIER_NOTE)


def _of_equal_flops(series: Series) -> Table:
    """At equal operations bits are no power of the size: too small a model has too few parameters, too large a one too
    few rows. What there is to know is the size between."""
    heads = ["task", "best parameters", "lowest bits"]
    rows = []
    for key in series.tasks:
        measured = series.measured(key)
        seeds = min(len(sample.bits) for _, sample in measured)
        sizes = [math.log2(one.parameters) for one, _ in measured]
        best = optimum.optimum(sizes, numpy.array([sample.bits[:seeds] for _, sample in measured]).T)
        low, high = best.interval
        told = with_interval(2**best.place, 2**low, 2**high, ",.0f") + ", at the edge" * best.at_an_edge
        rows.append([task_title(key), told, f"{min(sample.mean for _, sample in measured):.3f}"])
    return Table("the best width at equal operations", heads, rows, EQUAL_FLOPS_NOTE)


def _of_next(config: Config, hardware: Hardware | None, series: Series, known: dict[TaskKey, TaskLaws]) -> Table:
    size = planning.parameters(config.model)
    flops = planning.run_flops(config)
    hours = _hours(config, hardware, series.widths[-1], flops)
    rows = [["parameters", f"{size:,}"], ["operations", f"{flops:.2e}"], ["hours", hours]]
    for key, found in known.items():
        fit = found.by_parameters
        told = "not determined" if fit is None or fit.undetermined else with_interval(*fit.predicted(size), ".3f")
        rows.append([task_title(key), told])
    return Table(f"the next width, {config.model.width}", ["what", "value"], rows, NEXT_NOTE)


def _hours(config: Config, hardware: Hardware | None, largest: Width, flops: float) -> str:
    """Hours by `upscale plan` where the study names the hardware, else by the speed of the largest width here."""
    if hardware is None:
        hours = largest.hours * flops / largest.flops
        return f"{hours:,.1f} rank hours, if as fast an operation as width {largest.config.model.width} here"
    cluster = Cluster(
        hardware.nodes, hardware.gpus_per_node, DEVICES[hardware.device], hardware.network_gigabits * 1e9 / 8
    )
    best = alternatives(memory.in_bfloat16(config), cluster, hardware.utilization)[0]
    if not best.fits:
        return f"does not fit {cluster.ranks} {hardware.device}, whatever the engine"
    return (
        f"{best.run_seconds / 3600:,.1f} on {cluster.ranks} {hardware.device}, {best.gpu_hours:,.0f} GPU hours, with "
        f"matrix products at {hardware.utilization:.0%} of the peak (an assumption)"
    )


def _pictures(series: Series, known: dict[TaskKey, TaskLaws]) -> dict[str, dict[str, bytes]]:
    """Bits by rows seen (the paper's figure 2, for every width), by operations with the frontier, and by parameters."""
    if not known:
        return {}
    y = "bits per character"
    rows, flops, sizes = [], [], []
    for key, found in known.items():
        title, levels = task_title(key), levels_of(series.evaluations(key))
        lines = _curves(series, key, flops_of)
        if found.frontier:
            means = [one.sample.mean for one in found.frontier]
            look = canvas.OPTIMUM | {"linestyle": "-", "linewidth": 1.2}
            lines.append(multiples.Line("frontier", [one.flops for one in found.frontier], means, means, means, look))
        rows.append(multiples.Panel(title, _curves(series, key, None), levels))
        flops.append(multiples.Panel(title, lines, levels))
        sizes.append(multiples.Panel(title, _points(series, key, found.by_parameters), levels))
    return {
        "rows": multiples.draw(rows, canvas.INSTANCES, y, log_x=False),
        "operations": multiples.draw(flops, "floating-point operations", y, log_x=True),
        "parameters": multiples.draw(sizes, "parameters", y, log_x=True),
    }


def _curves(series: Series, key: TaskKey, flops: Callable[[Config, int], float] | None) -> list[multiples.Line]:
    """A line a width over rows seen, or with `flops` over operations, after the first evaluation."""
    lines = []
    for place, one in enumerate(series.widths):
        rows = {seen: found for seen, found in one.rows(key).items() if seen or flops is None}
        if rows:
            bits = numpy.array([[value(row, "bits_per_character") for row in found] for found in rows.values()])
            x = [flops(one.config, seen) if flops else seen for seen in rows]
            look = canvas.look_of(place, marker_size=2.5)
            lines.append(multiples.Line.of_seeds(f"width {one.config.model.width}", x, bits.T, look))
    return lines


def _points(series: Series, key: TaskKey, fit: Fit | None) -> list[multiples.Line]:
    """The ends of the widths with two standard errors, and the law where it is determined."""
    measured = series.measured(key)
    sizes, means = [one.parameters for one, _ in measured], [sample.mean for _, sample in measured]
    errors = fit.errors if fit else [0.0] * len(means)
    look, bars = canvas.look_of(0, marker_size=4), 2 * numpy.array(errors)
    lines = [multiples.Line("measured, 2 s.e.", sizes, means, means - bars, means + bars, look, points=True)]
    if fit and not fit.undetermined:
        along = numpy.geomspace(min(sizes), 2 * max(sizes), 60)
        values = numpy.array([law.at(along) for law in fit.replicates])
        low, high = numpy.percentile(values, laws.INTERVAL, axis=0)
        lines.append(multiples.Line("law, 95 %", along, fit.law.at(along), low, high, canvas.look_of(1)))
    return lines


def _record(series: Series, known: dict[TaskKey, TaskLaws]) -> dict:
    widths = []
    for one in series.widths:
        numbers: dict[str, Any] = {
            "width": one.config.model.width,
            "parameters": one.parameters,
            "instances": one.instances,
        }
        numbers |= {"flops": one.flops, "rank_hours": one.hours, "seeds": list(one.runs)}
        samples = {" ".join(key): one.sample(key) for key in series.tasks}
        bits = {name: list(sample.bits) for name, sample in samples.items() if sample}
        widths.append(numbers | {"bits_per_character": bits})
    tasks = {}
    for key, found in known.items():
        tasks[" ".join(key)] = {
            "markov": series.level(key, MARKOV),
            "optimum": series.level(key, OPTIMAL),
            "law_of_parameters": _fit_record(found.by_parameters),
            "held_out": _fit_record(found.held_out),
            "law_of_flops": _fit_record(found.by_flops),
            "frontier": [{"width": one.width.name, "flops": one.flops} for one in found.frontier],
        }
    return {"widths": widths, "tasks": tasks}


def _fit_record(fit: Fit | None) -> dict | None:
    if fit is None:
        return None
    intervals = {name: fit.interval(name) for name in ("irreducible", "reducible", "exponent")}
    numbers = {"residuals": fit.residuals, "errors": fit.errors, "not_determined": fit.undetermined}
    return asdict(fit.law) | {"intervals": intervals} | numbers
