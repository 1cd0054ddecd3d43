"""The page of a report: what the numbers mean, the tables, and the pictures, as one HTML text that fetches nothing."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from html import escape

import numpy

from upscale.console.text import duration
from upscale.report import comparison
from upscale.report.canvas import colour_of, smoothing_window
from upscale.report.figures import Picture, tasks_of
from upscale.report.runs import Run, TaskKey, task_title, value
from upscale.report.stylesheet import STYLESHEET

_UNKNOWN = "–"
_SECTIONS = (
    (
        "loss",
        "Training loss",
        "Mean bits needed for the next byte of the rows the model trains on. Fresh rows come from random programs, and "
        "nobody can predict all of them, so the level depends on the sources: compare runs of the same sources only.",
    ),
    (
        "schedule",
        "Schedule",
        "What drove training, as it was applied. Sleeping blocks cost nothing; one row is one context of tokens.",
    ),
    (
        "speed",
        "Speed",
        "Tokens that all ranks together train on in a second, the part of a step spent making data, and the share of "
        "the devices' peak that the model's own arithmetic reaches (MFU, where the peak is known).",
    ),
)
_LEDE = """<p class=lede>These models learn from data that random programs write. <strong>Training loss</strong> is
the bits they need for each next byte of such rows. <strong>Zero-shot bits per character</strong> is what they then need
on text they have never seen, without any further training: <strong>8</strong> means that a model knows nothing, the
<strong>Markov baseline</strong> is what counting characters inside the same window gives, and the
<strong>optimum</strong>, where it is known, is what a reader who knows how the text was made would need. Lower is
better.</p>"""
_SCORES = """<p>The mean cost of one character given those before it in the same window. In the plots the band around a
line is two standard errors wide on each side; in the table ± is one. The <em>corrected</em> Markov baseline has
probabilities that sum to one, the <em>published</em> one follows the formula of the paper's code. The verdict uses the
corrected one; a difference within two standard errors counts as level.</p>"""


def build(runs: Sequence[Run], pictures: Sequence[Picture]) -> str:
    """The whole page. Everything that came from a file is escaped, and a policy forbids the page to fetch anything."""
    title = "Upscale report: " + ", ".join(run.name for run in runs)
    body = [_headline(runs), comparison.section(runs), "<h2>Runs</h2>", _runs_table(runs)]
    body += [_section(name, heading, words, pictures) for name, heading, words in _SECTIONS[:1]]
    body += [_evaluations(runs, pictures)]
    body += [_section(name, heading, words, pictures) for name, heading, words in _SECTIONS[1:]]
    body += ["<h2>Configuration</h2>", *(_configuration(run) for run in runs)]
    content = "\n".join(part for part in body if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLESHEET}</style>\n</head>\n<body>\n"
        f"<header><h1>{_title(runs)}</h1></header>\n<main>\n{content}\n</main>\n</body>\n</html>\n"
    )


def compare(row: dict) -> str:
    """`beats`, `level` or `behind` the corrected Markov baseline, `` when there is none.

    Level means within two standard errors of the model's own score (none known: any difference counts).
    """
    gain = value(row, "markov_bits_per_character") - value(row, "bits_per_character")
    margin = float(numpy.nan_to_num(2 * value(row, "standard_error")))
    if math.isnan(gain):
        return ""
    return "beats" if gain > margin else "behind" if gain < -margin else "level"


def _title(runs: Sequence[Run]) -> str:
    return escape(runs[0].name) if len(runs) == 1 else f"{len(runs)} runs compared"


def _headline(runs: Sequence[Run]) -> str:
    """Plain words: what is measured, then one sentence or two for each run."""
    items = "".join(f"<li>{_swatch(index)}{_findings(run)}</li>" for index, run in enumerate(runs))
    return f"{_LEDE}\n<ul class=findings>{items}</ul>"


def _findings(run: Run) -> str:
    loss = run.column("loss_bits_per_byte")[-1]
    rows = f"rows of its corpus ({_sources(run)})" if _is_corpus(run) else "synthetic rows"
    seen = f"<strong>{escape(run.name)}</strong> has seen {_count(run.instances[-1])} {rows}"
    loss_words = f"and needs {loss:.3f} bits per byte on them" if loss == loss else "and its last loss is not a number"
    sentences = [f"{seen} {loss_words}."]
    verdicts: dict[str, list[str]] = {}
    for key, scored in run.scored.items():
        verdicts.setdefault(compare(scored[-1]), []).append(escape(task_title(key)))
    compared = sum(len(tasks) for verdict, tasks in verdicts.items() if verdict)
    if compared:
        beaten = verdicts.get("beats", [])
        named = f": {', '.join(beaten)}" if beaten else ""
        sentences.append(f"It beats the Markov baseline on {len(beaten)} of {compared} tasks{named}.")
        if verdicts.get("level"):
            sentences.append(f"It is level with it on {', '.join(verdicts['level'])}.")
    elif not run.scored:
        sentences.append("It has not been evaluated yet.")
    if _is_corpus(run):
        sentences.append("It was trained on text, so its score on that text is not zero-shot.")
    return " ".join(sentences)


def _runs_table(runs: Sequence[Run]) -> str:
    heads = (
        *("Run", "Width × depth", "Sources", "Instances", "Steps", "Ranks"),
        "Final loss<small>bits per byte</small>",
        "Beats Markov<small>tasks</small>",
        "Time in steps<small>seconds</small>",
        "Peak memory<small>GiB per rank</small>",
    )
    lines = []
    for index, run in enumerate(runs):
        verdicts = [compare(scored[-1]) for scored in run.scored.values()]
        compared = sum(bool(verdict) for verdict in verdicts)
        cells = [
            f"<td class=name>{_swatch(index)}{escape(run.name)}{_path(run)}</td>",
            _cell(f"{_setting(run, 'model', 'width')} × {_setting(run, 'model', 'depth')}", _parameters(run)),
            f"<td>{_sources(run)}</td>",
            _cell(_count(run.instances[-1]), _planned(run)),
            _cell(_count(run.column("step")[-1]), _skipped_steps(run)),
            _cell(" → ".join(map(str, run.world_sizes)) or _UNKNOWN),
            _cell(*_final_loss(run)),
            _cell(f"{verdicts.count('beats')} of {compared}" if compared else _UNKNOWN),
            _cell(f"{run.seconds:,.0f}" if run.seconds else _UNKNOWN, _from_a_minute_on(run.seconds)),
            _cell(_memory(run)),
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return _table("".join(f"<th{'' if i in (0, 2) else ' class=number'}>{h}</th>" for i, h in enumerate(heads)), lines)


def _section(name: str, heading: str, words: str, pictures: Sequence[Picture]) -> str:
    panels = _panels(pictures, name)
    return f"<h2>{heading}</h2>\n<p>{words}</p>\n{panels}" if panels else ""


def _panels(pictures: Sequence[Picture], section: str) -> str:
    figures = []
    for picture in pictures:
        if picture.section == section:
            data = base64.b64encode(picture.png).decode("ascii")
            caption = f"<figcaption>{escape(picture.note)}</figcaption>" if picture.note else ""
            image = f'<img alt="{escape(picture.alt)}" src="data:image/png;base64,{data}">'
            figures.append(f'<figure id="{picture.file_name.removesuffix(".png")}">{image}{caption}</figure>')
    return f"<div class=panels>{''.join(figures)}</div>" if figures else ""


def _evaluations(runs: Sequence[Run], pictures: Sequence[Picture]) -> str:
    parts = ["<h2>Task by task</h2>" if any(map(_is_corpus, runs)) else "<h2>Zero-shot, task by task</h2>"]
    tasks = tasks_of(runs)
    if tasks:
        parts.append(_SCORES)
        parts.append(_panels(pictures, "tasks"))
        parts.append(_evaluation_table(runs, tasks))
    else:
        parts.append(
            "<p>No run has a score yet: evaluations start after the first <code>evaluation.every</code> instances.</p>"
        )
    unscored: dict[tuple[str, str], list[str]] = {}
    for index, run in enumerate(runs):
        for reason in run.unscored.items():
            unscored.setdefault(reason, []).append(f"{_swatch(index)}{escape(run.name)}")
    if unscored:
        items = (
            f"<li><strong>{escape(task)}</strong>: {escape(reason)}<small>{' &ensp; '.join(names)}</small></li>"
            for (task, reason), names in unscored.items()
        )
        parts.append(f"<h3>Tasks without a number</h3><ul>{''.join(items)}</ul>")
    return "\n".join(parts)


def _evaluation_table(runs: Sequence[Run], tasks: Iterable[TaskKey]) -> str:
    heads = (
        *("<th>Task</th>", "<th>Run</th>", "<th class=number>Instances</th>"),
        "<th class=number>Model<small>bits per character</small></th>",
        "<th class=number>Markov<small>corrected (order)</small></th>",
        "<th class=number>Markov<small>published (order)</small></th>",
        "<th class=number>Optimum</th>",
        "<th>Against Markov<small>corrected</small></th>",
        "<th class=number>Slices</th>",
    )
    lines = []
    for key in tasks:
        entries = [(index, run, run.scored[key][-1]) for index, run in enumerate(runs) if key in run.scored]
        for place, (index, run, row) in enumerate(entries):
            about = escape(_definition(key[0]))
            head = (
                f"<th rowspan={len(entries)}>{escape(task_title(key))}<small>{about}</small></th>" if place == 0 else ""
            )
            cells = [
                f"<td class=name>{_swatch(index)}{escape(run.name)}</td>",
                _cell(_count(value(row, "instances"))),
                _cell(_score(row)),
                _cell(_baseline(row, "markov")),
                _cell(_baseline(row, "markov_published")),
                _cell(_bits(value(row, "optimal_bits_per_character"))),
                f"<td>{_verdict(row)}</td>",
                _cell(_count(value(row, "samples"))),
            ]
            lines.append(f"<tr>{head}{''.join(cells)}</tr>")
    return _table("".join(heads), lines)


def _verdict(row: dict) -> str:
    verdict = compare(row)
    gain = value(row, "markov_bits_per_character") - value(row, "bits_per_character")
    words = {
        "beats": f"✓ beats it by {gain:.3f}",
        "level": f"≈ level ({-gain:+.3f})",
        "behind": f"✗ behind by {-gain:.3f}",
    }
    return f"<span class={verdict}>{words[verdict]}</span>" if verdict else "no baseline"


def _configuration(run: Run) -> str:
    versions = run.config.get("versions")
    pairs = versions.items() if isinstance(versions, dict) else ()
    line = ", ".join(f"{escape(str(name))} {escape(str(version))}" for name, version in pairs)
    content = f"<pre>{escape(run.config_text)}</pre>" if run.config_text else "<p>This run has no config.yaml.</p>"
    about = f"<p class=soft>{line}</p>" if line else ""
    return f"<details><summary>{escape(run.name)}</summary>{about}{content}</details>"


def _table(heads: str, lines: Sequence[str]) -> str:
    body = f"<thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f"<div class=scroll tabindex=0><table>{body}</table></div>"


def _cell(text: str, below: str = "") -> str:
    """A right-aligned cell; text from files must be escaped before."""
    return f"<td class=number>{text}{f'<small>{below}</small>' if below else ''}</td>"


def _swatch(index: int) -> str:
    return f'<span class=swatch style="background:{colour_of(index)}"></span>'


def _path(run: Run) -> str:
    """Where the run lies, unless its name says so already."""
    return "" if run.name.endswith(f"({run.path})") else f"<small>{escape(str(run.path))}</small>"


def _definition(task: str) -> str:
    """What the task consists of, in the evaluation's own words; empty for a task of another version."""
    from upscale.evaluation.tasks import TASKS

    return TASKS[task].definition if task in TASKS else ""


def _setting(run: Run, section: str, key: str) -> str:
    given = run.setting(section, key)
    return _UNKNOWN if given is None else escape(str(given))


def _is_corpus(run: Run) -> bool:
    return run.setting("data", "kind") == "corpus"


def _sources(run: Run) -> str:
    """The kinds of source, with their weights where there are several; a corpus by its name."""
    if _is_corpus(run):
        corpora = run.setting("data", "corpora") or []
        return ", ".join(escape(str(corpus.get("path"))) for corpus in corpora if isinstance(corpus, dict)) or "corpus"
    given = run.setting("data", "sources")
    sources = [source for source in given if isinstance(source, dict)] if isinstance(given, list) else []
    if len(sources) < 2:
        return escape(str(sources[0].get("kind", _UNKNOWN))) if sources else _UNKNOWN
    return ", ".join(
        f"{escape(str(source.get('kind')))} ({escape(str(source.get('weight', 1)))})" for source in sources
    )


def _parameters(run: Run) -> str:
    """The model's size from its width, depth, context and vocabulary, to three digits; empty where unknown."""
    sizes = [run.setting("model", key) for key in ("width", "depth", "context", "vocabulary")]
    if not all(isinstance(size, int) for size in sizes):
        return ""
    width, depth, context, vocabulary = sizes
    # a block: four attention matrices, two of the feed-forward part, norms and biases; then the embeddings and the head
    total = depth * (12 * width**2 + 10 * width) + (2 * vocabulary + context) * width + vocabulary
    return f"{total / 1e9:.3g} B parameters" if total >= 1e9 else f"{total / 1e6:.3g} M parameters"


def _planned(run: Run) -> str:
    planned = run.setting("schedule", "instances")
    if not isinstance(planned, (int, float)) or planned <= 0:
        return ""
    percent = 100 * run.instances[-1] / planned
    return f"{percent:.{0 if percent >= 10 else 2}f} % of plan"


def _skipped_steps(run: Run) -> str:
    skipped = run.column("skipped_steps")[-1]
    return f"{skipped:,.0f} skipped" if skipped > 0 else ""


def _final_loss(run: Run) -> tuple[str, str]:
    """The last logged loss, and the mean of the last fortieth of them, which is less noisy."""
    losses = run.column("loss_bits_per_byte")
    window = smoothing_window(len(losses))
    tail = losses[-window:]
    mean = f"mean of {window}: {numpy.nanmean(tail):.3f}" if window > 1 and numpy.isfinite(tail).any() else ""
    return (f"{losses[-1]:.3f}" if math.isfinite(losses[-1]) else "not a number"), mean


def _memory(run: Run) -> str:
    memory = run.column("peak_memory_gib")
    return f"{numpy.nanmax(memory):.1f}" if numpy.isfinite(memory).any() else _UNKNOWN


def _baseline(row: dict, kind: str) -> str:
    bits, order = value(row, f"{kind}_bits_per_character"), value(row, f"{kind}_order")
    return _bits(bits) + (f" ({order:.0f})" if bits == bits and order == order else "")


def _score(row: dict) -> str:
    error = value(row, "standard_error")
    return _bits(value(row, "bits_per_character")) + (f" ± {error:.3f}" if error == error else "")


def _bits(bits: float) -> str:
    return _UNKNOWN if math.isnan(bits) else f"{bits:.3f}"


def _count(number: float) -> str:
    return _UNKNOWN if math.isnan(number) else f"{number:,.0f}"


def _from_a_minute_on(seconds: float) -> str:
    return duration(seconds) if seconds >= 60 else ""
