"""Bits after equally many minutes: which recipe learns most in a given time on a given machine.

A run with `run.minutes` stops by the time that its own steps took, over restarts. So the budget is exact to a step, and
what a recipe makes of it, in rows, is measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from upscale import planning
from upscale.config import Config
from upscale.report import canvas, multiples
from upscale.report.runs import Run, TaskKey, task_title, value
from upscale.study.grid import GridPlan
from upscale.study.page import Page, Table, as_json, or_dash
from upscale.study.results import Spread

POINTS = 16
"""Of a curve over minutes."""
SHARES = (0.25, 0.5, 1.0)
NOTE = (
    "Minutes: of drawing rows and of steps, as measured; evaluations, checkpoints and starting are not counted. Mean "
    "bits: bits per character, the mean over the tasks, zero-shot; before the end on the line between two evaluations. "
    "Of several seeds the mean (lowest to highest). Minutes are of one machine and of what else ran on it."
)
TASK_NOTE = "Bits per character at the end, and in brackets the difference to the first recipe; means over seeds."


@dataclass(frozen=True)
class Recipe:
    """The finished trainings of one recipe in one series, by seed."""

    name: str
    config: Config
    runs: dict[int, Run]

    @property
    def tasks(self) -> list[TaskKey]:
        return list(dict.fromkeys(key for run in self.runs.values() for key in run.scored))

    def minutes(self, run: Run) -> float:
        return run.seconds / 60

    def bits(self, run: Run, key: TaskKey, minutes: multiples.Values) -> numpy.ndarray:
        """Bits per character after so many minutes, on the line between evaluations; NaN where not measured."""
        rows = run.scored.get(key, [])
        if not rows:
            return numpy.full(len(minutes), math.nan)
        at = elapsed(run, [value(row, "instances") for row in rows])
        return numpy.interp(minutes, at, [value(row, "bits_per_character") for row in rows])

    def at(self, share: float) -> Spread:
        """Mean bits over the tasks after a share of the minutes, of each seed."""
        means = []
        for run in self.runs.values():
            found = [self.bits(run, key, [share * self.minutes(run)])[0] for key in run.scored]
            means.append(float(numpy.mean(found)) if found else math.nan)
        return Spread.of(means)

    def end(self, key: TaskKey) -> float:
        return float(numpy.mean([self.bits(run, key, [self.minutes(run)])[0] for run in self.runs.values()]))


def elapsed(run: Run, instances: Sequence[float]) -> numpy.ndarray:
    """Minutes that a run's steps had taken when it had seen so many rows."""
    spent = numpy.nancumsum(numpy.diff(run.column("step"), prepend=0.0) * run.column("step_seconds")) / 60
    return numpy.interp(instances, [0.0, *run.instances], [0.0, *spent])


def collect(plan: GridPlan, points: dict[str, str]) -> list[Recipe]:
    """The recipes of a series that have a finished training, in the order of the file."""
    return [
        Recipe(name, trained[0][0].config, {member.seed: run for member, run in trained})
        for name, trained in plan.finished("recipe", points).items()
    ]


def page(plan: GridPlan) -> Page:
    """Tables, the pictures and the record of what has finished."""
    known = {label: found for label, points in plan.series("recipe").items() if (found := collect(plan, points))}
    tables, pictures = [], {}
    for label, recipes in known.items():
        title = f" of {label}" if label else ""
        tables.append(Table(f"bits at equal minutes{title}", *_table(recipes), NOTE))
        tables.append(Table(f"bits per character{title}", *_of_tasks(recipes), TASK_NOTE))
        panels = [multiples.Panel(task_title(key), _curves(plan, recipes, key)) for key in _tasks(recipes)]
        if panels:
            name = f"minutes-{label}".rstrip("-").replace(", ", "-")
            pictures[name] = multiples.draw(panels, "minutes of training", "bits per character", log_x=False)
    series = {label: [_record(recipe) for recipe in recipes] for label, recipes in known.items()}
    return Page(tables, pictures, {"series": series})


def _tasks(recipes: Sequence[Recipe]) -> list[TaskKey]:
    return list(dict.fromkeys(key for recipe in recipes for key in recipe.tasks))


def _table(recipes: Sequence[Recipe]) -> tuple[list[str], list[list[str]]]:
    heads = ["recipe", "seeds", "minutes", "rows", "parameters", *(f"mean bits at {share:.0%}" for share in SHARES)]
    rows = []
    for recipe in recipes:
        runs = list(recipe.runs.values())
        minutes = Spread.of(recipe.minutes(run) for run in runs).text(".1f")
        seen = Spread.of(float(run.instances[-1]) for run in runs).text(",.0f")
        size = f"{planning.parameters(recipe.config.model):,}"
        bits = [recipe.at(share).text(".3f") for share in SHARES]
        rows.append([recipe.name, str(len(runs)), minutes, seen, size, *bits])
    return heads, rows


def _of_tasks(recipes: Sequence[Recipe]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for key in _tasks(recipes):
        first, *others = [recipe.end(key) for recipe in recipes]
        compared = [f"{or_dash(end)} ({or_dash(end - first, '+.3f')})" for end in others]
        rows.append([task_title(key), or_dash(first), *compared])
    return ["task", *(recipe.name for recipe in recipes)], rows


def _curves(plan: GridPlan, recipes: Sequence[Recipe], key: TaskKey) -> list[multiples.Line]:
    names, lines = list(plan.study.axes["recipe"]), []
    for recipe in recipes:
        if key in recipe.tasks:
            x = numpy.linspace(0, min(recipe.minutes(run) for run in recipe.runs.values()), POINTS + 1)[1:]
            bits = numpy.array([recipe.bits(run, key, x) for run in recipe.runs.values()])
            look = canvas.look_of(names.index(recipe.name), marker_size=2.5)
            lines.append(multiples.Line.of_seeds(recipe.name, x, bits, look))
    return lines


def _record(recipe: Recipe) -> dict:
    runs = {
        str(seed): {
            "minutes": recipe.minutes(run),
            "rows": float(run.instances[-1]),
            "bits_per_character": {
                " ".join(key): recipe.bits(run, key, [recipe.minutes(run)])[0] for key in run.scored
            },
        }
        for seed, run in recipe.runs.items()
    }
    return as_json({"name": recipe.name, "parameters": planning.parameters(recipe.config.model), "seeds": runs})
