"""The plan of a grid: a training at every combination of its axes' points and seeds, and every mistake beforehand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from upscale import planning
from upscale.config import Config
from upscale.config import files as config_files
from upscale.errors import UserError
from upscale.report.runs import Run
from upscale.study import continued, grid_finetuning
from upscale.study.grid_finetuning import Pair
from upscale.study.members import Member, as_overrides, changes, problems_of, problems_of_files, problems_of_settings
from upscale.study.schema import AXES, UNEQUAL, Grid, Point, failure

Place = tuple[str, ...]
"""A point's name for each axis, in the order of the axes."""


@dataclass(frozen=True)
class GridPlan:
    study: Grid
    folder: Path
    """Of the run directories."""
    to: Path
    """Folder of the results."""
    cells: dict[tuple[Place, int], Member]
    """The training of each place and seed."""
    next: Config | None
    """The resolved config of the width to foretell."""
    finetunings: dict[str, dict[tuple[Place, int], Pair]] = field(default_factory=dict)
    """By the text's name: what follows the training of each place and seed."""

    def members(self, points: list[str] | None = None) -> list[Member]:
        """Every training, seed after seed, each after the one that it continues and before its fine-tunings.

        With names of points, those at one of them on each axis that has one."""
        asked = [names.keys() & set(points or names) or names.keys() for names in self.study.axes.values()]
        found: dict[str, Member] = {}
        for (place, seed), cell in self.cells.items():
            if all(name in names for name, names in zip(place, asked, strict=True)):
                pairs = [pairs[place, seed] for pairs in self.finetunings.values()]
                after = [member for pair in pairs for member in (pair.tuned, pair.scratch)]
                found.update({one.name: one for member in (cell, *after) for one in (*member.needs, member)})
        return list(found.values())

    def places(self, **fixed: str) -> list[Place]:
        """The places of the grid whose points on the named axes are these."""
        axes = list(self.study.axes)
        found = dict.fromkeys(place for place, _ in self.cells)
        return [place for place in found if all(place[axes.index(axis)] == name for axis, name in fixed.items())]

    def series(self, *own: str) -> dict[str, dict[str, str]]:
        """The combinations of the points of all axes but `own`: label -> point by axis; one, "", without other axes."""
        others = {axis: list(points) for axis, points in self.study.axes.items() if axis not in own}
        combined = [dict(zip(others, names, strict=True)) for names in itertools.product(*others.values())]
        return {", ".join(place.values()): place for place in combined}

    def finished(self, axis: str, fixed: dict[str, str]) -> dict[str, list[tuple[Member, Run]]]:
        """The trainings that have finished at these points of other axes, with their runs, by the point of `axis`;
        points without one are left out."""
        found = {}
        for name in self.study.axes[axis]:
            places = self.places(**fixed, **{axis: name})
            members = [self.cells[place, seed] for place in places for seed in self.study.seeds]
            if trained := [(member, member.run) for member in members if member.finished()]:
                found[name] = trained
        return found


def by_rate(trained: Iterable[tuple[Member, Run]]) -> dict[float, dict[int, Run]]:
    """The runs by log2 of their base learning rate, and by seed."""
    found: dict[float, dict[int, Run]] = {}
    for member, run in trained:
        found.setdefault(math.log2(member.config.optimizer.learning_rate), {})[member.seed] = run
    return found


def make(
    path: Path, study: Grid, overrides: Sequence[str] = (), runs: Path | None = None, to: Path | None = None
) -> GridPlan:
    """The plan of a grid; raises UserError with the mistakes of every member, before anything is started."""
    folder, to = study.folders(runs, to)
    places = [("set", study.set), ("override", [text.partition("=")[0] for text in overrides])]
    places += [("before.set", study.before.set)] if study.before else []
    places += [(f"finetune.{name}.set", wanted.set) for name, wanted in study.finetune.items()]
    places += [(f"axes.{axis}.{name}.set", p.set) for axis, points in study.axes.items() for name, p in points.items()]
    problems = list(problems_of_settings(places))
    cells: dict[tuple[Place, int], Member] = {}
    for seed in study.seeds:
        for place in itertools.product(*study.axes.values()):
            try:
                cells[place, seed] = _member(study, place, seed, overrides, folder)
            except UserError as error:
                problems += [f"{'.'.join(place)}: {problem}" for problem in problems_of(error)]
    following = None
    if study.next:
        try:
            point = Point(config=study.next.config, set=study.next.set)
            following = _config(study, [point], overrides, {})[2]
        except UserError as error:
            problems += [f"next: {problem}" for problem in problems_of(error)]
    finetunings: dict[str, dict[tuple[Place, int], Pair]] = {}
    for name, wanted in study.finetune.items():
        known: dict[str, Member] = {}
        try:
            finetunings[name] = {
                at: grid_finetuning.pair(name, wanted, cell, overrides, known) for at, cell in cells.items()
            }
        except UserError as error:
            problems += [f"finetune.{name}: {problem}" for problem in problems_of(error)]
    if not problems:
        plan = GridPlan(study, folder, to, cells, following, finetunings)
        problems = [*_problems_of_members(plan), *_problems_of_axes(plan), *_problems_of_budgets(plan)]
        for name, wanted in study.finetune.items():
            problems += grid_finetuning.problems(name, wanted, list(finetunings[name].values()))
    if problems:
        raise failure(path, list(dict.fromkeys(problems)))
    return plan


def _member(study: Grid, place: Place, seed: int, overrides: Sequence[str], folder: Path) -> Member:
    points = [study.axes[axis][name] for axis, name in zip(study.axes, place, strict=True)]
    label = ".".join(place)
    name = f"{label}-{seed}"
    own = {"run.name": name, "run.dir": str(folder / name), "run.seed": seed}
    before = continued.before(study, place, seed, overrides, folder)
    if before and study.before:
        own |= {"init.from": str(before.directory), "init.reinitialize": study.before.reinitialize}
    path, words, config = _config(study, points, overrides, own)
    scripts = [point.script for point in points if point.script]
    options = [*study.slurm.options, *(option for point in points for option in point.slurm)]
    script = scripts[-1] if scripts else study.slurm.script
    return Member(name, label, seed, path, tuple(words), config, before, script, tuple(options))


def _config(study: Grid, points: list[Point], overrides: Sequence[str], own: dict) -> tuple[str, list[str], Config]:
    """The file, the overrides and the resolved config of what these points say; the last of them wins."""
    files = [path for path in [study.config, *(point.config for point in points)] if path]
    if not files:
        raise UserError("no config: neither a point nor the grid names one")
    settings = dict(study.set)
    for point in points:
        settings |= point.set
    words = [*as_overrides(settings), *overrides, *as_overrides(own)]
    config = config_files.load(files[-1], words).resolved()
    if study.flops is not None:
        rows = instances_for(config, study.flops)
        words.append(f"schedule.instances={rows}")
        config = config_files.load(files[-1], words).resolved()
    return files[-1], words, config


def flops_of(config: Config, instances: int) -> float:
    """Floating-point operations of the first `instances` rows of a config's schedule."""
    return planning.run_flops(config.with_values(schedule={"instances": round(instances)}))


def instances_for(config: Config, flops: float) -> int:
    """The most rows that take at most so many floating-point operations, at least one."""
    low, high = 1, 2
    while flops_of(config, high) <= flops:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if flops_of(config, middle) <= flops else (low, middle)
    return low


def _problems_of_members(plan: GridPlan) -> Iterator[str]:
    seen = set()
    for member in plan.cells.values():
        model = member.config.model
        files = repr((member.config.data, member.config.evaluation, model.vocabulary, model.context))
        if files not in seen:  # widths and rates read the same ones
            seen.add(files)
            yield from (f"{member.stage}: {problem}" for problem in problems_of_files(member.config))
    for member in plan.members():
        yield from changes(member, growing=True)
    yield from continued.problems(plan.cells.values())


def _problems_of_axes(plan: GridPlan) -> Iterator[str]:
    """Points of `width` or `rate` that do not differ in it: the axis would compare nothing."""
    keys = {"width": lambda config: config.model.width, "rate": lambda config: config.optimizer.learning_rate}
    for axis in (axis for axis in AXES[plan.study.report] if axis in keys):
        values = {
            name: keys[axis](plan.cells[plan.places(**{axis: name})[0], plan.study.seeds[0]].config)
            for name in plan.study.axes[axis]
        }
        if len(set(values.values())) < len(values):
            told = ", ".join(f"{name} {value:g}" for name, value in values.items())
            yield f"axes.{axis}: its points have the same {axis}: {told}"


def _problems_of_budgets(plan: GridPlan) -> Iterator[str]:
    """Widths of one series must train on equally many rows, or with `flops` on rows of equally many operations."""
    if plan.study.report == "minutes":
        minutes = {member.stage: member.config.run.minutes for member in plan.cells.values()}
        if len(set(minutes.values())) > 1 or None in minutes.values():
            told = ", ".join(f"{name} {value or 'none'}" for name, value in minutes.items())
            yield f"set: a minutes study needs the same run.minutes for all trainings; there are {told}"
        return
    for label, series in plan.series("width").items():
        members = [plan.cells[place, plan.study.seeds[0]] for place in plan.places(**series)]
        if plan.study.flops is not None:
            continue
        rows = {member.stage: member.instances for member in members}
        if max(rows.values()) > (1 + UNEQUAL) * min(rows.values()):
            told = ", ".join(f"{name} {count:,}" for name, count in rows.items())
            yield (
                f"the widths{' of ' + label if label else ''} train on unequal numbers of rows: {told}. Set the same "
                "schedule.instances, or flops: for equal operations"
            )
