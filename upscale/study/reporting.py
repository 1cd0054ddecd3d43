"""What a study found: a table for the terminal and in Markdown, everything as JSON, and a picture."""

from __future__ import annotations

import io
import json
import math
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from upscale.config import files as config_files
from upscale.console.text import aligned_table
from upscale.errors import UserError
from upscale.files import write_atomically
from upscale.report.runs import Run, read_runs, value
from upscale.study import efficiency
from upscale.study.page import plain
from upscale.study.plan import Plan
from upscale.study.results import Result, Spread

HEADS = (
    *("arm", "seeds", "tokens before", "final bits", "gain, bits", "2 s.e.", "gain, % of bits"),
    *("gain, % of perplexity", "tokens to reach", "speed-up", "speed-up in all"),
)
DERIVED = ("gain", "gain_of_bits", "gain_of_perplexity", "speed_up", "speed_up_in_all")
READING = "## Reading"
NOTE = (
    "Bits per character of the held-out text. Gain: how much lower than the baseline of the same seed an arm ends; 2 "
    "s.e.: two standard errors of that difference over slices of the text, the largest of the seeds. Tokens to reach: "
    "of the compared stage, until the arm is as low as the baseline ends. Speed-up: the baseline's tokens to that loss "
    "over the arm's; in all: with the arm's earlier stages counted. Of several seeds the mean (lowest to highest)."
)


def write(plan: Plan, results: Sequence[Result], words: Sequence[str]) -> str:
    """Writes NAME.json, NAME.png and NAME.md into the folder of the results; returns the tables for the terminal.

    What stands below `## Reading` in an earlier NAME.md stays.
    """
    stem = plan.to / plan.study.name
    try:
        plan.to.mkdir(parents=True, exist_ok=True)
        write_atomically(
            stem.with_suffix(".json"), (json.dumps(record(plan, results, words), indent=1) + "\n").encode()
        )
        write_atomically(stem.with_suffix(".png"), picture(results))
        page = stem.with_suffix(".md")
        write_atomically(page, (markdown(plan, results, words) + reading(page)).encode())
    except OSError as error:
        raise UserError(f"the results cannot be written to {plan.to}: {error.strerror or error}; choose --to") from None
    tables = [f"{heading(result)}\n{aligned_table(HEADS, rows(plan, result)[1:])}" for result in results]
    tables.append(NOTE)
    for result in results:
        if found := efficiency.collect(plan, result):
            lines = efficiency.rows(plan, result, found)[1:]
            title = f"what the stages before are worth: {heading(result)}"
            tables.append(f"{title}\n{aligned_table(efficiency.HEADS, lines)}\n{efficiency.NOTE}")
    shown = "\n\n".join(tables)
    return f"{shown}\nwritten: {stem}.md, .json, .png"


def reading(page: Path) -> str:
    """What someone has written below the heading READING of an earlier version, heading included."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    _, heading, reading = text.partition(f"\n{READING}\n")
    return heading + reading


def heading(result: Result) -> str:
    metric = result.metric
    return f"{metric.task} ({metric.split}) in stage {metric.stage}, against {result.baseline}"


def rows(plan: Plan, result: Result) -> list[list[str]]:
    """The cells of one table, its heads first; the arm that gains most first, arms without a result last."""
    lines = []
    for arm, outcomes in result.outcomes.items():
        found = list(outcomes.values())
        before = plan.tokens_before(arm, result.metric.stage)
        if not found:
            lines.append((math.inf, [arm, f"0 of {len(plan.study.seeds)}", f"{before:,}", *[""] * (len(HEADS) - 3)]))
            continue
        spread = {name: Spread.of(getattr(one, name) for one in found) for name in (*DERIVED, "final", "reached")}
        compared = [
            spread["gain"].words("+.3f"),
            f"{max(one.margin for one in found):.3f}",
            Spread.of(100 * one.gain_of_bits for one in found).words("+.1f"),
            Spread.of(100 * one.gain_of_perplexity for one in found).words("+.1f"),
        ]
        reached = [spread[name].words(form) for name, form in (("reached", ",.0f"), ("speed_up", ".2f"))]
        reached.append(spread["speed_up_in_all"].words(".2f") if before else "the same")
        if arm == result.baseline:
            compared, reached = ["baseline", "", "", ""], [spread["reached"].words(",.0f"), "1", "1"]
        cells = [arm, f"{len(found)} of {len(plan.study.seeds)}", f"{before:,}", spread["final"].words(".3f")]
        lines.append((-spread["gain"].mean, [*cells, *compared, *reached]))
    return [list(HEADS), *(cells for _, cells in sorted(lines, key=lambda line: line[0]))]


def markdown(plan: Plan, results: Sequence[Result], words: Sequence[str]) -> str:
    parts = [f"# The study {plan.study.name}"]
    for result in results:
        parts += [f"## {heading(result)}", _in_markdown(rows(plan, result))]
        if found := efficiency.collect(plan, result):
            parts += ["### What the stages before are worth", _in_markdown(efficiency.rows(plan, result, found))]
            parts += [efficiency.NOTE]
    arms = "\n".join(f"- `{arm}`: {description(plan, arm)}" for arm in plan.study.arms)
    parts += [NOTE, "The arms, and the tokens of each stage:", arms, f"![bits per character]({plan.study.name}.png)"]
    return "\n\n".join([*parts, f"    {shlex.join(words)}"]) + "\n"


def _in_markdown(cells: Sequence[Sequence[str]]) -> str:
    head, *lines = [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join([head, "|" + "---|" * len(cells[0]), *lines])


def description(plan: Plan, arm: str) -> str:
    """An arm's stages with their tokens and what begins anew in them."""
    parts = []
    for member in plan.chains[arm, plan.study.seeds[0]]:
        fresh = member.config.init.reinitialize
        anew = f", fresh {', '.join(fresh)}" if fresh else ""
        rules = member.config.init.rows.model_dump().items()
        anew += "".join(f", rows of {what} {rule}" for what, rule in rules if rule != "carried")
        anew += f", weights {member.config.init.control}" if member.config.init.control != "none" else ""
        anew += "".join(f", {part} of {Path(path).name}" for part, path in member.config.init.mix.items())
        parts.append(f"{member.stage} ({member.tokens:,}{anew})")
    return ", then ".join(parts)


def record(plan: Plan, results: Sequence[Result], words: Sequence[str]) -> dict:
    """All that the tables are made of, and enough to do it again; what never happened is null."""
    compared = []
    for result in results:
        arms = {
            arm: {
                str(seed): finite(asdict(one) | {name: getattr(one, name) for name in DERIVED})
                for seed, one in seeds.items()
            }
            for arm, seeds in result.outcomes.items()
        }
        curves = {
            arm: {str(seed): _curve(result, run) for seed, run in seeds.items()} for arm, seeds in result.runs.items()
        }
        worth = plain(efficiency.record(efficiency.collect(plan, result)))
        own = {"baseline": result.baseline, "arms": arms, "efficiency": worth, "curves": curves}
        compared.append({**result.metric.model_dump(), **own})
    members = {}
    for member in plan.members():
        members[member.name] = {"arguments": member.arguments, "tokens": member.tokens, "finished": member.finished()}
        if member.finished():
            members[member.name] |= training(member.directory)
    return {
        "study": plan.study.model_dump(mode="json"),
        "command": shlex.join(words),
        "versions": config_files.versions(),
        "compared": compared,
        "members": members,
    }


def training(directory: Path) -> dict:
    """How well and how long a member trained: a first stage that learned nothing has nothing to hand on."""
    (run,) = read_runs([directory])
    losses = run.column("loss_bits_per_byte")
    last = losses[-max(1, len(losses) // 10) :]
    return finite({"training_bits_per_token_at_the_end": float(last.mean()), "step_seconds": run.seconds})


def _curve(result: Result, run: Run) -> dict[str, list[float]]:
    scored = run.scored[result.metric.task, result.metric.split]
    return {
        "tokens": [value(row, "instances") * result.context for row in scored],
        "bits_per_character": [value(row, "bits_per_character") for row in scored],
        "standard_error": [value(row, "standard_error") for row in scored],
    }


def finite(given: dict) -> dict:
    """The same with null for what is not finite, as JSON wants it."""
    return {key: number if math.isfinite(number) else None for key, number in given.items()}


def picture(results: Sequence[Result]) -> bytes:
    """A panel a metric: bits per character over the stage's tokens, mean and range of the seeds; the dotted line is
    where the baseline ends."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    from upscale.report.canvas import OPTIMUM, look_of

    figure = Figure(figsize=(6.4 * len(results), 4.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    arms = list(dict.fromkeys(arm for result in results for arm in result.runs))
    lines: dict[str, Any] = {}
    for axes, result in zip(figure.subplots(1, len(results), squeeze=False)[0], results, strict=True):
        later = []
        for arm, runs in result.runs.items():
            points: dict[float, list[float]] = {}
            for run in runs.values():
                curve = _curve(result, run)
                for tokens, bits in zip(curve["tokens"], curve["bits_per_character"], strict=True):
                    points.setdefault(tokens, []).append(bits)
            if not points:
                continue
            places, look = sorted(points), look_of(arms.index(arm), marker_size=3.5)
            means = [statistics.mean(points[place]) for place in places]
            low, high = ([pick(points[place]) for place in places] for pick in (min, max))
            axes.fill_between(places, low, high, color=look["color"], alpha=0.15, linewidth=0)
            lines.setdefault(arm, axes.plot(places, means, **look)[0])
            later += high[len(high) // 4 :] + low[len(low) // 4 :]
            if arm == result.baseline:
                axes.axhline(means[-1], **OPTIMUM)
        axes.set_title(f"{result.metric.task} ({result.metric.split}), stage {result.metric.stage}", loc="left")
        axes.set_xlabel("tokens of the stage")
        axes.set_ylabel("bits per character")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(color="#e4e4e4")
        if later:  # what the first quarter of a curve does above would press the rest together
            axes.set_ylim(min(later) - 0.05, max(later) + 0.05)
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=5, handlelength=3, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
