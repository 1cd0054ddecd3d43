"""How zero-shot bits fall with the width of the model: every width's curves, their laws, the frontier of compute.

Of each series (the points of all axes but the width) the finished trainings are compared at what they ended with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from upscale import planning
from upscale.config import Config
from upscale.evaluation.record import EvaluationRecord
from upscale.report.runs import Run, TaskKey, value
from upscale.study import laws
from upscale.study.grid import GridPlan, flops_of
from upscale.study.laws import Fit, Sample

MARKOV, OPTIMAL = "markov_bits_per_character", "optimal_bits_per_character"


@dataclass(frozen=True)
class Width:
    """The finished trainings of one width in one series."""

    name: str
    config: Config
    instances: int
    runs: dict[int, Run]
    """By seed."""

    @cached_property
    def parameters(self) -> int:
        return planning.parameters(self.config.model)

    @cached_property
    def flops(self) -> float:
        return flops_of(self.config, self.instances)

    @property
    def hours(self) -> float:
        """Hours of all its ranks together, steps only; mean over seeds."""
        taken = [run.seconds * max(run.world_sizes or [1]) for run in self.runs.values()]
        return sum(taken) / len(taken) / 3600

    def rows(self, key: TaskKey) -> dict[int, list[EvaluationRecord]]:
        """The evaluations of one task by instances seen, a row a seed; only where all seeds have one."""
        by_instances: dict[int, list[EvaluationRecord]] = {}
        scored = [run.scored.get(key, []) for run in self.runs.values()]
        for rows in scored:
            for row in rows:
                by_instances.setdefault(round(value(row, "instances")), []).append(row)
        return {seen: by_instances[seen] for seen in sorted(by_instances) if len(by_instances[seen]) == len(scored)}

    def sample(self, key: TaskKey) -> Sample | None:
        """Bits of every seed at the end, by parameters; None if not measured."""
        rows = self.rows(key)
        return _sample(self.parameters, rows[max(rows)]) if rows else None


@dataclass(frozen=True)
class Handover:
    """A width's last point on the frontier of compute: the most operations for which it is the best of all widths."""

    width: Width
    sample: Sample

    @property
    def flops(self) -> float:
        return self.sample.size


@dataclass(frozen=True)
class TaskLaws:
    """What the ends of a series' widths say of one task."""

    by_parameters: Fit | None
    """None at equal operations, where bits are no power of the size, and for fewer than three widths."""
    held_out: Fit | None
    """The same without the largest width."""
    by_flops: Fit | None
    """Of the widths' last points on the frontier."""
    frontier: tuple[Handover, ...]


@dataclass(frozen=True)
class Series:
    label: str
    widths: list[Width]
    """By parameters, rising."""

    @cached_property
    def tasks(self) -> list[TaskKey]:
        """The tasks that a training has a number for, in the order the first met them."""
        return list(dict.fromkeys(key for width in self.widths for run in width.runs.values() for key in run.scored))

    def evaluations(self, key: TaskKey) -> list[EvaluationRecord]:
        """The evaluations of one task that all seeds of their width have."""
        return [row for width in self.widths for rows in width.rows(key).values() for row in rows]

    def level(self, key: TaskKey, field: str) -> float:
        """The Markov baseline or the optimum, of the evaluation with most slices; NaN where it is not known."""
        known = [row for row in self.evaluations(key) if not math.isnan(value(row, field))]
        return value(max(known, key=lambda row: value(row, "samples")), field) if known else math.nan

    def measured(self, key: TaskKey) -> list[tuple[Width, Sample]]:
        """The widths that have a number at their end, with it."""
        found = [(width, width.sample(key)) for width in self.widths]
        return [(width, sample) for width, sample in found if sample]

    def laws(self, key: TaskKey, equal_flops: bool) -> TaskLaws:
        samples = [sample for _, sample in self.measured(key)]
        frontier = self.frontier(key)
        by_flops = _fit([handover.sample for handover in frontier])
        if equal_flops:
            return TaskLaws(None, None, by_flops, frontier)
        return TaskLaws(_fit(samples), _fit(samples[:-1]), by_flops, frontier)

    def frontier(self, key: TaskKey) -> tuple[Handover, ...]:
        """Each width's last point that is below what any width reached with fewer operations; the first evaluation,
        before training, does not count."""
        points = [
            Handover(width, _sample(flops_of(width.config, seen), rows))
            for width in self.widths
            for seen, rows in width.rows(key).items()
            if seen
        ]
        lowest, last = math.inf, {}
        for point in sorted(points, key=lambda point: (point.flops, point.sample.mean)):
            if point.sample.mean < lowest:
                lowest = point.sample.mean
                last[point.width.name] = point
        return tuple(sorted(last.values(), key=lambda handover: handover.flops))


def _sample(size: float, rows: Sequence[EvaluationRecord]) -> Sample:
    """The evaluations of every seed as a law takes them."""
    bits = tuple(value(row, "bits_per_character") for row in rows)
    groups = tuple(tuple(row.group_bits_per_character or ()) for row in rows)
    errors = tuple(value(row, "standard_error") for row in rows)
    return Sample(size, bits, groups if all(groups) else (), errors)


def _fit(samples: Sequence[Sample]) -> Fit | None:
    return laws.fit(samples) if len({sample.size for sample in samples}) >= 3 else None


def collect(plan: GridPlan) -> list[Series]:
    """One for each combination of the other axes' points that has a finished training."""
    found = []
    for label, points in plan.series("width").items():
        widths = []
        for name, trained in plan.finished("width", points).items():
            member = trained[0][0]
            widths.append(Width(name, member.config, member.instances, {one.seed: run for one, run in trained}))
        if widths:
            found.append(Series(label, sorted(widths, key=lambda width: width.parameters)))
    return found
