"""What a study of arms found: its tables, its picture, and the numbers they are made of."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from upscale.report import canvas, multiples
from upscale.report.runs import Run, value
from upscale.study import efficiency, page, results
from upscale.study.page import Page, Table, as_json
from upscale.study.plan import Plan
from upscale.study.results import Result, Spread

HEADS = (
    *("arm", "seeds", "tokens before", "final bits", "gain, bits", "2 s.e.", "gain, % of bits"),
    *("gain, % of perplexity", "tokens to reach", "speed-up", "speed-up in all"),
)
DERIVED = ("gain", "gain_of_bits", "gain_of_perplexity", "speed_up", "speed_up_in_all")
NOTE = (
    "Bits per character of the held-out text. Gain: how much lower than the baseline of the same seed an arm ends; 2 "
    "s.e.: two standard errors of that difference over slices of the text, the largest of the seeds. Tokens to reach: "
    "of the compared stage, until the arm is as low as the baseline ends. Speed-up: the baseline's tokens to that loss "
    "over the arm's; in all: with the arm's earlier stages counted. Of several seeds the mean (lowest to highest)."
)


def write(plan: Plan, command: Sequence[str]) -> str:
    """The tables for the terminal, after writing the results' files, as `page.write` does; of metrics of which nothing
    is known, a line that says so.

    Raises UserError where nothing can be written, and ValueError for a run's damaged file.
    """
    found = results.collect(plan)
    known = [one for one in found if any(seeds for arm, seeds in one.outcomes.items() if arm != one.baseline)]
    parts = [
        f"{heading(one)}: nothing to compare yet; an arm and the baseline must have finished"
        for one in found
        if one not in known
    ]
    return "\n".join([*parts, *([page.write(_page(plan, known), plan.study, plan.to, command)] if known else [])])


def _page(plan: Plan, known: Sequence[Result]) -> Page:
    tables = []
    for result in known:
        tables.append(Table(heading(result), HEADS, rows(plan, result), NOTE if result is known[0] else ""))
        if worth := efficiency.collect(plan, result):
            title = f"what the stages before are worth: {heading(result)}"
            tables.append(Table(title, efficiency.HEADS, efficiency.rows(plan, result, worth), efficiency.NOTE))
    arms = "\n".join(f"- `{arm}`: {description(plan, arm)}" for arm in plan.study.arms)
    closing = ["The arms, and the tokens of each stage:", arms]
    return Page(tables, {"": _picture(known)}, _record(plan, known), closing=closing)


def heading(result: Result) -> str:
    metric = result.metric
    return f"{metric.task} ({metric.split}) in stage {metric.stage}, against {result.baseline}"


def rows(plan: Plan, result: Result) -> list[list[str]]:
    """The cells of one table; the arm that gains most first, arms without a result last."""
    lines = []
    for arm, outcomes in result.outcomes.items():
        found = list(outcomes.values())
        before = plan.tokens_before(arm, result.metric.stage)
        if not found:
            lines.append((math.inf, [arm, f"0 of {len(plan.study.seeds)}", f"{before:,}", *[""] * (len(HEADS) - 3)]))
            continue
        spread = {name: Spread.of(getattr(one, name) for one in found) for name in (*DERIVED, "final", "reached")}
        compared = [
            spread["gain"].text("+.3f"),
            f"{max(one.margin for one in found):.3f}",
            Spread.of(100 * one.gain_of_bits for one in found).text("+.1f"),
            Spread.of(100 * one.gain_of_perplexity for one in found).text("+.1f"),
        ]
        reached = [spread[name].text(form) for name, form in (("reached", ",.0f"), ("speed_up", ".2f"))]
        reached.append(spread["speed_up_in_all"].text(".2f") if before else "the same")
        if arm == result.baseline:
            compared, reached = ["baseline", "", "", ""], [spread["reached"].text(",.0f"), "1", "1"]
        cells = [arm, f"{len(found)} of {len(plan.study.seeds)}", f"{before:,}", spread["final"].text(".3f")]
        lines.append((-spread["gain"].mean, [*cells, *compared, *reached]))
    return [cells for _, cells in sorted(lines, key=lambda line: line[0])]


def description(plan: Plan, arm: str) -> str:
    """An arm's stages with their tokens and what begins anew in them."""
    parts = []
    for step, member in zip(plan.study.arms[arm], plan.chains[arm, plan.study.seeds[0]], strict=True):
        fresh = member.config.init.reinitialize
        anew = f", fresh {', '.join(fresh)}" if fresh else ""
        rules = member.config.init.rows.model_dump().items()
        anew += "".join(f", rows of {what} {rule}" for what, rule in rules if rule != "carried")
        anew += f", weights {member.config.init.control}" if member.config.init.control != "none" else ""
        anew += "".join(f", {part} of {Path(path).name}" for part, path in member.config.init.mix.items())
        anew += "".join(f", {key} {value}" for key, value in step.set.items())
        parts.append(f"{member.stage} ({member.tokens:,}{anew})")
    return ", then ".join(parts)


def _record(plan: Plan, known: Sequence[Result]) -> dict:
    """All that the tables are made of, and enough to do it again; what never happened is null."""
    compared = []
    for result in known:
        arms = {
            arm: {
                str(seed): asdict(one) | {name: getattr(one, name) for name in DERIVED} for seed, one in seeds.items()
            }
            for arm, seeds in result.outcomes.items()
        }
        curves = {
            arm: {str(seed): _curve(result, run) for seed, run in seeds.items()} for arm, seeds in result.runs.items()
        }
        worth = efficiency.record(efficiency.collect(plan, result))
        own = {"baseline": result.baseline, "arms": arms, "efficiency": worth, "curves": curves}
        compared.append({**result.metric.model_dump(), **own})
    members: dict[str, dict[str, Any]] = {}
    for member in plan.members():
        members[member.name] = {"arguments": member.arguments, "tokens": member.tokens, "finished": member.finished()}
        members[member.name] |= member.training() if member.finished() else {}
    return {"compared": as_json(compared), "members": members}


def _curve(result: Result, run: Run) -> dict[str, list[float]]:
    scored = run.scored[result.metric.task, result.metric.split]
    return {
        "tokens": [value(row, "instances") * result.context for row in scored],
        "bits_per_character": [value(row, "bits_per_character") for row in scored],
        "standard_error": [value(row, "standard_error") for row in scored],
    }


def _picture(known: Sequence[Result]) -> dict[str, bytes]:
    """A panel a metric: bits per character over the stage's tokens, mean and range of the seeds; the dotted line is
    where the baseline ends."""
    names = list(dict.fromkeys(arm for result in known for arm in result.runs))
    panels = []
    for result in known:
        lines, levels = [], []
        for arm, runs in result.runs.items():
            points: dict[float, list[float]] = {}
            for run in runs.values():
                curve = _curve(result, run)
                for tokens, bits in zip(curve["tokens"], curve["bits_per_character"], strict=True):
                    points.setdefault(tokens, []).append(bits)
            if points:
                places, look = sorted(points), canvas.look_of(names.index(arm), marker_size=3.5)
                means, low, high = ([pick(points[at]) for at in places] for pick in (statistics.mean, min, max))
                lines.append(multiples.Line(arm, places, means, low, high, look))
                levels += [(f"the end of {arm}", means[-1], canvas.OPTIMUM)] if arm == result.baseline else []
        title = f"{result.metric.task} ({result.metric.split}), stage {result.metric.stage}"
        panels.append(multiples.Panel(title, lines, levels))
    return multiples.draw(panels, "tokens of the stage", "bits per character", log_x=False)
