"""The pictures of a report: small panels, each legible alone and on a phone, with their words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy

from upscale.evaluation.record import EvaluationRecord
from upscale.report import canvas, learnt, multiples
from upscale.report.picture import Picture
from upscale.report.runs import Run, TaskKey, task_title, value

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Bits are cut here in a plot: one burst of 60 bits would press everything else into a line.
_MOST_BITS = 12.0
# Every model begins near 8 bits; that this is above a panel goes without saying.
_BEGIN_BITS = 9.0


@dataclass(frozen=True)
class _Panel:
    """One field of the logged steps, drawn with one line a run."""

    section: str
    slug: str
    title: str
    field: str
    y_label: str
    unit: str = ""
    scale: float = 1.0
    smooth: bool = False
    stairs: bool = False
    log_x: bool = False
    log_y: bool = False


_LOSS = "loss (bits per byte)"
_PANELS = (
    _Panel("loss", "loss", "Training loss", "loss_bits_per_byte", _LOSS, "bits per byte", smooth=True),
    _Panel(
        "loss",
        "loss-log",
        "Training loss, log axis",
        "loss_bits_per_byte",
        _LOSS,
        "bits per byte",
        smooth=True,
        log_x=True,
    ),
    _Panel("loss", "gradient-norm", "Gradient norm", "grad_norm", "norm before clipping (L2)", smooth=True, log_y=True),
    _Panel(
        *(
            "loss",
            "attention-logits",
            "Largest attention logit",
            "attention_logit_maximum",
            "largest logit of any block",
        ),
        log_y=True,
    ),
    _Panel(
        "schedule",
        "active-blocks",
        "Active blocks",
        "active_blocks",
        "blocks (count)",
        "blocks",
        stairs=True,
        log_x=True,
    ),
    _Panel(
        "schedule",
        "learning-rate",
        "Learning rate",
        "learning_rate",
        "learning rate (× 10⁻⁴)",
        "× 10⁻⁴",
        1e4,
        log_x=True,
    ),
    _Panel(
        "schedule",
        "global-batch",
        "Global batch",
        "global_batch",
        "rows per step",
        "rows per step",
        stairs=True,
        log_x=True,
    ),
    _Panel(
        *(
            "speed",
            "tokens-per-second",
            "Speed of all ranks",
            "tokens_per_second",
            "tokens per second",
            "tokens per second",
        ),
        smooth=True,
    ),
    _Panel(
        "speed",
        "generating",
        "Time generating data",
        "generate_share",
        "share of the step (%)",
        "%",
        100.0,
        smooth=True,
    ),
    _Panel(
        *("speed", "utilization", "Model FLOPs utilization", "model_flops_utilization", "MFU (% of peak)", "%", 100.0),
        smooth=True,
    ),
)


def draw(runs: Sequence[Run], files: bool = True) -> list[Picture]:
    """Every picture that the runs have numbers for, in the order of the page; with `files` also as PNG and SVG."""
    pictures = [_draw_metric(panel, runs, files) for panel in [*_PANELS, *_source_panels(runs)]]
    known = [picture for picture in pictures if picture is not None]
    return known + _draw_tasks(runs, files) + learnt.draw(runs, files)


def tasks_of(runs: Iterable[Run]) -> list[TaskKey]:
    """The tasks that any run has a number for, in the order the first run met them."""
    return list(dict.fromkeys(key for run in runs for key in run.scored))


def _source_panels(runs: Sequence[Run]) -> list[_Panel]:
    """How much of each source was learnt, where its optimum is known; of several sources also the others' losses."""
    found = {field: dict.fromkeys(name for run in runs for row in run.metrics for name in getattr(row, field) or ())
             for field in ("loss_bits_per_source", "excess_bits_per_source")}  # fmt: skip
    losses, excesses = found.values()
    panels = []
    for name in losses:
        slug = "source-" + canvas.slug(name)
        if name in excesses:
            title, field = f"{name}: loss above its optimum", f"excess_bits_per_source.{name}"
            panels.append(_Panel("loss", slug, title, field, "bits per target above the optimum", smooth=True))
        elif len(losses) > 1:
            field = f"loss_bits_per_source.{name}"
            panels.append(_Panel("loss", slug, f"{name}: loss", field, "bits per target", smooth=True))
    return panels


def _draw_metric(panel: _Panel, runs: Sequence[Run], files: bool) -> Picture | None:
    """One panel over the logged steps, or None where no run has its field (utilization on an unknown device)."""
    series = [run.column(panel.field) * panel.scale for run in runs]
    everything = numpy.concatenate(series)
    if not numpy.isfinite(everything).any():
        return None
    seen = numpy.concatenate([run.instances for run in runs])
    seen = seen[seen > 0]
    wide = len(seen) > 0 and seen.max() / seen.min() >= 20
    if panel.slug == "loss-log" and not wide:
        return None
    notes: list[str] = []

    def lines(axes: Axes) -> None:
        for index, (run, values) in enumerate(zip(runs, series, strict=True)):
            # runs often share a schedule: the first ones are wider, to be seen below the later ones
            width = 1.2 + min(1.3 * (len(runs) - 1 - index), 5.2) if panel.section == "schedule" else 1.8
            _draw_series(axes, index, run, values, panel, width, len(runs) <= canvas.MOST_WITH_BANDS)
        if panel.log_x and wide:
            axes.set_xscale("log")
        if panel.log_y and (everything > 0).any():
            axes.set_yscale("log")
        if panel.section in ("schedule", "speed"):
            axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
        if panel.unit == "bits per byte":
            notes.append(canvas.cut_axis(axes, everything, _MOST_BITS))
        if panel.slug == "tokens-per-second":
            notes.append(canvas.mark_worlds(axes, runs, series))

    if panel.smooth and max(canvas.smoothing_window(len(values)) for values in series) > 1:
        few = len(runs) <= canvas.MOST_WITH_BANDS
        notes.append("Thin: logged steps. Thick: running mean" if few else "Running mean")
        notes[-1] += " over a fortieth of them." if few else " over a fortieth of the logged steps."
    drawing = canvas.render(panel.title, canvas.INSTANCES, panel.y_label, lines, canvas.legend_of(runs), files)
    finals = (f"{run.name} {_last(values, panel.unit)}" for run, values in zip(runs, series, strict=True))
    alt = f"{panel.title} over {canvas.INSTANCES}. Last values: {'; '.join(finals)}."
    note = " ".join(filter(None, [*notes, "Logarithmic horizontal axis." if panel.log_x and wide else ""]))
    return Picture(panel.section, panel.slug, panel.title, panel.y_label, alt, note, drawing)


def _draw_series(
    axes: Axes, index: int, run: Run, values: numpy.ndarray, panel: _Panel, width: float, steps: bool
) -> None:
    """One run's line; what is smoothed also as the single logged steps, with `steps`."""
    gid = canvas.name_of(index)
    if panel.smooth and canvas.smoothing_window(len(values)) > 1:
        if steps:
            thin: canvas.Look = {"color": canvas.colour_of(run.look), "linewidth": 0.6, "alpha": 0.3, "gid": gid}
            axes.plot(*canvas.thinned(run.instances, values), **thin)
        values = canvas.smoothed(values, run.world_changes if panel.section == "speed" else ())
    # a run with one logged step is a point; a line of one point would not show
    look = canvas.look_of(run.look, marker_size=4 if len(values) == 1 else 0) | {"linewidth": width, "gid": gid}
    axes.plot(*canvas.thinned(run.instances, values), drawstyle="steps-post" if panel.stairs else "default", **look)


def _draw_tasks(runs: Sequence[Run], files: bool) -> list[Picture]:
    """Small multiples: one panel a task, the same x axis in all of them."""
    rows = [row for run in runs for scored in run.scored.values() for row in scored]
    right = max((value(row, "instances") for row in rows), default=0.0)
    pictures: dict[str, Picture] = {}
    for key in tasks_of(runs):
        name = "task-" + canvas.slug(" ".join(key))
        # two names may differ in signs only, which a file name does not keep
        name = name if name not in pictures else f"{name}-{len(pictures)}"
        pictures[name] = _draw_task(key, name, runs, right, files)
    return list(pictures.values())


def of_all_tasks(runs: Sequence[Run]) -> dict[str, bytes]:
    """Every task in one picture with one legend, as a paper takes it: png and svg by ending; none without scores."""
    panels = []
    bands = len(runs) <= canvas.MOST_WITH_BANDS
    for key in tasks_of(runs):
        lines = []
        for run in runs:
            if scored := run.scored.get(key):
                seen, bits = ([value(row, field) for row in scored] for field in ("instances", "bits_per_character"))
                errors = [2 * float(numpy.nan_to_num(value(row, "standard_error"))) * bands for row in scored]
                low = [here - error for here, error in zip(bits, errors, strict=True)]
                high = [here + error for here, error in zip(bits, errors, strict=True)]
                lines.append(multiples.Line(run.name, seen, bits, low, high, canvas.look_of(run.look)))
        levels = levels_of([row for run in runs for row in run.scored.get(key, [])])
        panels.append(multiples.Panel(task_title(key), lines, levels))
    return multiples.draw(panels, canvas.INSTANCES, "bits per character", log_x=False) if panels else {}


def _draw_task(key: TaskKey, name: str, runs: Sequence[Run], right: float, files: bool) -> Picture:
    """Bits per character of one task over instances, one line a run, beside the Markov baseline and the optimum."""
    rows = [row for run in runs for row in run.scored.get(key, [])]
    levels = levels_of(rows)
    notes: list[str] = []

    def lines(axes: Axes) -> None:
        worth_showing = [bits for _, bits, _ in levels]
        for index, run in enumerate(runs):
            worth_showing += _draw_scores(axes, index, run, key, len(runs) <= canvas.MOST_WITH_BANDS)
        for _, bits, look in levels:
            axes.axhline(bits, **look)
        axes.set_xlim(-0.02 * right, 1.03 * right if right else 1.0)
        low, high = min(worth_showing), min(_MOST_BITS, max(worth_showing))
        room = max(high - low, 0.02)
        axes.set_ylim(max(0.0, low - 0.15 * room), high + 0.15 * room)
        scores = numpy.array([value(row, "bits_per_character") for row in rows])
        cut = canvas.cut_axis(axes, scores, high + 0.15 * room)
        notes.append(cut if scores.max() > _BEGIN_BITS else "")

    title = task_title(key)
    legend = canvas.legend_of(runs, marker_size=4, only=[key in run.scored for run in runs])
    legend += [(look, f"{label} {bits:.3g}") for label, bits, look in levels]
    drawing = canvas.render(title, canvas.INSTANCES, "bits per character", lines, legend, files)
    finals = [f"{run.name} {value(run.scored[key][-1], 'bits_per_character'):.3f}" for run in runs if key in run.scored]
    finals += [f"{label} {bits:.3f}" for label, bits, _ in levels]
    alt = f"Bits per character on {title} over {canvas.INSTANCES}. Last values: {'; '.join(finals)}."
    note = " ".join(filter(None, [f"{label} {bits:.3f}.".capitalize() for label, bits, _ in levels] + notes))
    return Picture("tasks", name, title, "bits per character", alt, note, drawing)


def levels_of(rows: Sequence[EvaluationRecord]) -> list[tuple[str, float, canvas.Look]]:
    """The horizontal lines of a task that are known: name, bits per character, look.

    The baseline is measured on each evaluation's own slices; the evaluation with the most of them estimates it best.
    """
    by_samples = sorted(rows, key=lambda row: -numpy.nan_to_num(value(row, "samples")))
    found = []
    for name, field, look in (
        ("Markov baseline", "markov_bits_per_character", canvas.MARKOV),
        ("optimum", "optimal_bits_per_character", canvas.OPTIMUM),
    ):
        known = [bits for bits in (value(row, field) for row in by_samples) if not math.isnan(bits)]
        found += [(name, known[0], look)] if known else []
    return found


def _draw_scores(axes: Axes, index: int, run: Run, key: TaskKey, bands: bool) -> list[float]:
    """The scores that the axis must have room for, after drawing one run's with a band of two standard errors.

    Every model starts near 8 bits; what is worth the room is what follows the first quarter.
    """
    fields = ("instances", "bits_per_character", "standard_error")
    scored = run.scored.get(key, [])
    instances, bits, error = (numpy.array([value(row, field) for row in scored]) for field in fields)
    look = canvas.look_of(run.look, marker_size=3.5 if len(bits) < 40 else 0) | {"gid": canvas.name_of(index)}
    if bands:
        band: canvas.Look = {"color": canvas.colour_of(run.look), "alpha": 0.2, "lw": 0, "gid": canvas.name_of(index)}
        axes.fill_between(instances, bits - 2 * error, bits + 2 * error, **band)
    else:
        look |= {"linewidth": 1.3, "markevery": [-1] if len(bits) else None}
    axes.plot(instances, bits, **look)
    return bits[len(bits) // 4 :].tolist()


def _last(values: numpy.ndarray, unit: str) -> str:
    final = values[-1]
    return "unknown" if math.isnan(final) else f"{final:.4g} {unit}".strip()
