"""How much text a stage before it is worth, in the figures of papers on procedural pre-training, as they define them.

An arm has trained on T1 tokens before the compared stage. The baseline ends at a loss after T2base tokens of text, the
arm is as low after T2. Then
  saved, T1 not counted      1 - T2 / T2base           (Hu et al. 2025, arXiv 2502.19249: 33 % at 1 B)
  saved, T1 counted          1 - (T1 + T2) / T2base
  saved operations           the same of floating-point operations, of both stages
  marginal rate of substitution   (T2base - T2) / T1   text saved for each token of T1 (Hu et al.: 7 to 17)
T2 is found between trainings that ended their schedules at smaller budgets (`substitute`), on a line over the logarithm
of tokens; without such trainings on the arm's own curve, where the arm is still on its way and the figure a lower bound
if the schedule ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from upscale.planning import run_flops
from upscale.report.runs import UNKNOWN
from upscale.study import budgets
from upscale.study.plan import Plan
from upscale.study.results import Result, Spread

HEADS = (
    *("arm", "T1 tokens", "above its optimum, bits", "text to equal loss", "found on", "saved, %"),
    *("saved with T1, %", "saved operations, %", "rate of substitution"),
)
NOTE = (
    "T1: tokens before the compared stage; above its optimum: bits a token by which the loss on the sources ended "
    "above the least that is possible, where that is known: a source that was not learnt has nothing to hand on. Text "
    "to equal loss: tokens T2 until the arm is as low as the baseline ends, at T2base. Found on runs: between "
    "trainings that ended their schedules at smaller budgets; 'at most' where the smallest was enough. Found on the "
    "curve: on the way of one training. Saved: 1 - T2 / T2base; with T1: 1 - (T1 + T2) / T2base; operations: the same "
    "of floating-point operations. Rate of substitution: (T2base - T2) / T1, text saved for each token of T1. Means of "
    "the seeds (lowest to highest)."
)


@dataclass(frozen=True)
class Efficiency:
    """One arm and seed against the baseline of the same seed; NaN where the arm is never as low."""

    tokens_before: int
    flops_before: float
    text: float
    """T2."""
    bound: bool
    """Whether the arm was as low at the smallest budget already, so that less text may be enough."""
    on_runs: bool
    """Whether T2 was found between finished trainings, and not on one curve."""
    text_baseline: float
    """T2base."""
    flops_of_a_token: float
    """Of text, mean over the stage."""

    @property
    def saved(self) -> float:
        return 1 - self.text / self.text_baseline

    @property
    def saved_in_all(self) -> float:
        return 1 - (self.tokens_before + self.text) / self.text_baseline

    @property
    def saved_flops(self) -> float:
        of_text = self.flops_of_a_token
        return 1 - (self.flops_before + self.text * of_text) / (self.text_baseline * of_text)

    @property
    def rate_of_substitution(self) -> float:
        return (self.text_baseline - self.text) / self.tokens_before if self.tokens_before else math.nan


DERIVED = ("saved", "saved_in_all", "saved_flops", "rate_of_substitution")


def tokens_to(ends: Sequence[tuple[float, float]], bits: float) -> tuple[float, bool]:
    """The least tokens that end at so few bits, by (tokens, bits) of trainings that ended, tokens rising; and whether
    that is the smallest budget there is, so that fewer may do. NaN where none is as low."""
    if ends and ends[0][1] <= bits:
        return ends[0][0], True
    for (less, above), (more, below) in zip(ends, ends[1:], strict=False):
        if below <= bits:
            part = (above - bits) / (above - below)
            return math.exp(math.log(less) + part * (math.log(more) - math.log(less))), False
    return math.nan, False


def collect(plan: Plan, result: Result) -> dict[str, dict[int, Efficiency]]:
    """What the stages before are worth, by arm and seed, of arms that have such a stage and have finished."""
    found: dict[str, dict[int, Efficiency]] = {}
    for arm, outcomes in result.outcomes.items():
        before = plan.all_before(arm, result.metric.stage)
        if arm == result.baseline or not before or not outcomes:
            continue
        found[arm] = {}
        for seed, one in outcomes.items():
            last = plan.member(arm, seed, result.metric.stage)
            ends = _ends(plan, result, arm, seed)
            text, bound = (
                tokens_to([*ends, (one.tokens, one.final)], one.baseline_final) if ends else (one.reached, False)
            )
            found[arm][seed] = Efficiency(
                tokens_before=one.tokens_before,
                flops_before=sum(run_flops(member.config) for member in before),
                text=text,
                bound=bound,
                on_runs=bool(ends),
                text_baseline=plan.chains[result.baseline, seed][-1].tokens if ends else one.baseline_reached,
                flops_of_a_token=run_flops(last.config) / last.tokens,
            )
    return found


def _ends(plan: Plan, result: Result, arm: str, seed: int) -> list[tuple[float, float]]:
    """(tokens, bits) at the ends of an arm's finished trainings with smaller budgets of the compared stage."""
    found = []
    for name in budgets.family(plan.study, arm, result.metric.stage).values():
        member = plan.chains[name, seed][-1]
        if member.finished():
            rows = member.run.scored.get((result.metric.task, result.metric.split), [])
            if rows and rows[-1].bits_per_character is not None:
                found.append((float(member.tokens), rows[-1].bits_per_character))
    return found


def not_learnt(plan: Plan, arm: str, seed: int, stage: str) -> float:
    """Bits by which the losses of the sources before a stage ended above their optima, the mean over sources and the
    last tenth of the logged steps; NaN where no optimum is known."""
    values = []
    chain = plan.chains[arm, seed]
    for member in chain[: [one.stage for one in chain].index(stage)]:
        last = member.run.last_steps
        values += [bits for step in last for bits in (step.excess_bits_per_source or {}).values() if bits is not None]
    return sum(values) / len(values) if values else math.nan


def rows(plan: Plan, result: Result, found: dict[str, dict[int, Efficiency]]) -> list[list[str]]:
    """The cells of the table; the arm that saves most first."""
    lines = []
    for arm, seeds in found.items():
        every = list(seeds.values())
        spread = {name: Spread.of(100 * getattr(one, name) for one in every) for name in DERIVED[:3]}
        learnt = Spread.of(not_learnt(plan, arm, seed, result.metric.stage) for seed in seeds)
        text = Spread.of(one.text for one in every).text(",.0f")
        cells = [
            arm,
            f"{every[0].tokens_before:,}",
            learnt.text(".3f") if learnt.known else UNKNOWN,
            ("at most " if any(one.bound for one in every) else "") + text,
            "runs" if all(one.on_runs for one in every) else "the curve",
            *(spread[name].text("+.1f") for name in DERIVED[:3]),
            Spread.of(one.rate_of_substitution for one in every).text(".2f"),
        ]
        saved = spread["saved"].mean
        lines.append((math.inf if math.isnan(saved) else -saved, cells))
    return [cells for _, cells in sorted(lines, key=lambda line: line[0])]


def record(found: dict[str, dict[int, Efficiency]]) -> dict:
    """The same as JSON takes it, beside what the tables show."""
    return {
        arm: {str(seed): asdict(one) | {name: getattr(one, name) for name in DERIVED} for seed, one in seeds.items()}
        for arm, seeds in found.items()
    }
