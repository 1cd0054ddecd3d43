"""The arithmetic of a study: tokens to reach what the baseline ends at, and by how much an arm ends better.

Everything is compared seed by seed, arm and baseline of one seed having seen the same rows in the same order in the
stage that is compared; only then are means and ranges taken.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from upscale.evaluation.record import EvaluationRecord
from upscale.report.comparison import instances_to_reach, margin
from upscale.report.runs import Run, read_runs, value
from upscale.study.plan import Plan
from upscale.study.schema import Metric


@dataclass(frozen=True)
class Outcome:
    """One arm and seed beside the baseline of the same seed; bits per character. NaN for what never happened."""

    tokens_before: int
    """Trained on in earlier stages."""
    tokens: int
    """Trained on in the stage that is compared."""
    final: float
    baseline_final: float
    margin: float
    """Two standard errors of the difference of the two, over slices of the text."""
    reached: float
    """Tokens of the stage after which the arm first is as low as the baseline ends."""
    baseline_reached: float
    """The same of the baseline: its end, unless it was as low before."""

    @property
    def gain(self) -> float:
        """Bits per character by which the arm ends lower than the baseline."""
        return self.baseline_final - self.final

    @property
    def gain_of_bits(self) -> float:
        """The gain as a share of the baseline's bits."""
        return self.gain / self.baseline_final

    @property
    def gain_of_perplexity(self) -> float:
        """The share by which the perplexity of a character, 2^bits, is lower."""
        return 1 - 2**-self.gain

    @property
    def speed_up(self) -> float:
        """Baseline's tokens over the arm's to the same loss; earlier stages are not counted."""
        return self.baseline_reached / self.reached if self.reached else math.inf

    @property
    def speed_up_in_all(self) -> float:
        """The same with the arm's earlier stages counted."""
        spent = self.tokens_before + self.reached
        return self.baseline_reached / spent if spent else math.inf


def outcome(
    rows: Sequence[EvaluationRecord], baseline: Sequence[EvaluationRecord], context: int, tokens_before: int
) -> Outcome:
    """What an arm reached beside the baseline, from their evaluations of the compared stage, instances rising.

    Tokens are on the line between two evaluations.
    """
    ends = value(baseline[-1], "bits_per_character")
    return Outcome(
        tokens_before=tokens_before,
        tokens=round(value(rows[-1], "instances")) * context,
        final=value(rows[-1], "bits_per_character"),
        baseline_final=ends,
        margin=margin(rows[-1], baseline[-1]),
        reached=instances_to_reach(rows, ends) * context,
        baseline_reached=instances_to_reach(baseline, ends) * context,
    )


@dataclass(frozen=True)
class Result:
    """What one metric says about every arm that has its stage."""

    metric: Metric
    baseline: str
    context: int
    runs: dict[str, dict[int, Run]]
    """The finished runs of the stage by arm and seed."""
    outcomes: dict[str, dict[int, Outcome]]
    """By arm and seed, where the arm and the baseline have finished; the baseline is among the arms."""


def collect(plan: Plan) -> list[Result]:
    """One result for each metric of the study, of the members that have finished."""
    found = []
    for metric in plan.study.compare:
        key = (metric.task, metric.split)
        arms = plan.arms_with(metric.stage)
        members = {(arm, seed): plan.member(arm, seed, metric.stage) for arm in arms for seed in plan.study.seeds}
        paths = {place: member.directory for place, member in members.items() if member.finished()}
        read = {path: run for path in set(paths.values()) for run in read_runs([path]) if key in run.scored}
        runs: dict[str, dict[int, Run]] = {arm: {} for arm in arms}
        for (arm, seed), path in paths.items():
            if path in read:
                runs[arm][seed] = read[path]
        context = next(iter(members.values())).config.model.context
        outcomes = {
            arm: {
                seed: outcome(
                    run.scored[key],
                    runs[plan.study.baseline][seed].scored[key],
                    context,
                    plan.tokens_before(arm, metric.stage),
                )
                for seed, run in seeds.items()
                if seed in runs[plan.study.baseline]
            }
            for arm, seeds in runs.items()
        }
        found.append(Result(metric, plan.study.baseline, context, runs, outcomes))
    return found


@dataclass(frozen=True)
class Spread:
    """Values of several seeds; those that are not finite are only counted."""

    known: list[float]
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        given = list(values)
        return cls([each for each in given if math.isfinite(each)], len(given))

    @property
    def mean(self) -> float:
        return statistics.mean(self.known) if self.known else math.nan

    def text(self, form: str) -> str:
        """Mean and range, each in a format such as '.2f'; 'never' where no seed has a value."""
        if not self.known:
            return "never" if self.count else "–"
        text = format(self.mean, form)
        lowest, highest = format(min(self.known), form), format(max(self.known), form)
        if lowest != highest:
            text += f" ({lowest} to {highest})"
        return text if len(self.known) == self.count else f"{text}, {len(self.known)} of {self.count} seeds"
