"""The page of a report: what the numbers mean, the tables, and the pictures, as one HTML text that fetches nothing.

templates/page.html has the words and the markup, page.css the looks, and page.js sorts, filters and renews; the
functions here give them the numbers.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy
from markupsafe import Markup

from upscale.config import ModelConfig
from upscale.console.text import duration
from upscale.evaluation.record import EvaluationRecord
from upscale.model import costs
from upscale.report import comparison, learnt
from upscale.report.canvas import sample_of, smoothing_window
from upscale.report.figures import levels_of, tasks_of
from upscale.report.picture import Picture
from upscale.report.runs import UNKNOWN, Run, TaskKey, count, task_title, value


@dataclass(frozen=True)
class Watch:
    """What a page needs to renew itself."""

    seconds: float
    """Between two looks."""
    state: str
    """What stands for the files that the page was made of."""
    waiting: Sequence[str]
    """Runs that have not logged a step."""
    problem: str
    """Why runs cannot be shown; empty where they can."""


def build(runs: Sequence[Run], pictures: Sequence[Picture], watch: Watch | None = None) -> str:
    """The whole page. Everything that came from a file is escaped; a policy forbids the page to run any script but its
    own, which it knows by its hash, and to fetch anything (with `watch`: but itself)."""
    environment = _environment()
    script = (Path(__file__).parent / "templates/page.js").read_text(encoding="utf-8")
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src '{hash_of(script)}'"
    policy += "; base-uri 'none'; form-action 'none'" + ("; connect-src 'self'" if watch else "")
    return environment.get_template("page.html").render(
        runs=runs,
        pictures=pictures,
        pairs=comparison.pairs(runs),
        tasks=tasks_of(runs),
        texts=learnt.texts_of(runs),
        unscored=_unscored(runs),
        differences=_differences(runs),
        any_corpus=any(map(_is_corpus, runs)),
        policy=policy,
        script=Markup(script),
        watch=watch,
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("upscale.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {function.__name__.strip("_"): function for function in _functions()}
    environment.globals["UNKNOWN"] = UNKNOWN
    return environment


def hash_of(script: str) -> str:
    """A script as a page's policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _functions() -> tuple[Callable, ...]:
    """What the template may call, by the functions' names without the underscore."""
    return (
        *(_baseline, _bits, _definition, _from_a_minute_on, _final_loss, _findings, _is_best, _last_scores, _markup),
        *(_memory, _parameters, _path, _planned, _score, _setting, _skipped_steps, _sources, _task_levels),
        *(_tasks_beaten, _verdict, _versions, _search_text),
        *(comparison.cells, comparison.sentences, sample_of, compare, count, learnt.text_of, task_title, value),
    )


def _markup(picture: Picture) -> Markup:
    """The picture's SVG, which we drew: no text from a file is in it, only the names of axes and numbers."""
    return Markup(picture.drawing.markup)


def _search_text(run: Run) -> str:
    """What a run is found by: its name, its path and what stands in its row of the table of runs."""
    size = f"{_setting(run, 'model', 'width')} × {_setting(run, 'model', 'depth')}"
    return " ".join([run.name, str(run.path), _sources(run), size]).lower()


def _task_levels(runs: Sequence[Run], key: TaskKey) -> list[str]:
    """The baseline and the optimum of a task, where they are known, for the head of a narrow column."""
    rows = [row for run in runs for row in run.scored.get(key, [])]
    return [f"{name.split()[0]} {bits:.3f}" for name, bits, _ in levels_of(rows)]


def _is_best(runs: Sequence[Run], key: TaskKey, row: EvaluationRecord) -> bool:
    """Whether no other run's newest score on the task is lower."""
    scores = [value(last, "bits_per_character") for _, _, last in _last_scores(runs, key)]
    return len(scores) > 1 and value(row, "bits_per_character") <= min(scores)


_OWN_KEYS = ("run.name", "run.dir")
_MOST_DIFFERENCES = 40


def _differences(runs: Sequence[Run]) -> tuple[list[str], list[list[str]], int]:
    """The config's keys in which runs differ, each run's values of them, and how many keys are left out."""
    trees = [dict(_flat(run.config, "", 4)) for run in runs]
    keys = [key for key in dict.fromkeys(key for tree in trees for key in tree) if key not in _OWN_KEYS]
    differing = [key for key in keys if len({tree.get(key, UNKNOWN) for tree in trees}) > 1]
    shown = differing[:_MOST_DIFFERENCES]
    return shown, [[tree.get(key, UNKNOWN) for key in shown] for tree in trees], len(differing) - len(shown)


def _flat(given: Any, place: str, depth: int) -> Iterator[tuple[str, str]]:
    """The values of a tree as text, by section.key; what lies deeper as one text."""
    if depth and isinstance(given, (dict, list)) and given:
        for key, inner in given.items() if isinstance(given, dict) else enumerate(given):
            yield from _flat(inner, f"{place}.{key}" if place else str(key), depth - 1)
    else:
        yield place, "null" if given is None else str(given)


def compare(row: EvaluationRecord) -> str:
    """`beats`, `level` or `behind` the corrected Markov baseline, `` when there is none.

    Level means within two standard errors of the model's own score (none known: any difference counts).
    """
    gain = value(row, "markov_bits_per_character") - value(row, "bits_per_character")
    margin = float(numpy.nan_to_num(2 * value(row, "standard_error")))
    if math.isnan(gain):
        return ""
    return "beats" if gain > margin else "behind" if gain < -margin else "level"


def _findings(run: Run) -> str:
    """What a run has seen and how it stands against the baseline, in one to three sentences after its name."""
    loss = run.column("loss_bits_per_byte")[-1]
    rows = f"rows of its corpus ({_sources(run)})" if _is_corpus(run) else "synthetic rows"
    loss_words = f"and needs {loss:.3f} bits per byte on them" if loss == loss else "and its last loss is not a number"
    sentences = [f"has seen {count(run.instances[-1])} {rows} {loss_words}."]
    verdicts: dict[str, list[str]] = {}
    for key, scored in run.scored.items():
        verdicts.setdefault(compare(scored[-1]), []).append(task_title(key))
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


def _tasks_beaten(run: Run) -> str:
    verdicts = [compare(scored[-1]) for scored in run.scored.values()]
    compared = sum(bool(verdict) for verdict in verdicts)
    return f"{verdicts.count('beats')} of {compared}" if compared else UNKNOWN


def _last_scores(runs: Sequence[Run], key: TaskKey) -> list[tuple[int, Run, EvaluationRecord]]:
    """The newest score of a task of every run that has one, with the run's place."""
    return [(index, run, run.scored[key][-1]) for index, run in enumerate(runs) if key in run.scored]


def _unscored(runs: Sequence[Run]) -> dict[tuple[str, str], list[tuple[int, Run]]]:
    """The runs with their places, by a task and the reason why it has no number."""
    found: dict[tuple[str, str], list[tuple[int, Run]]] = {}
    for index, run in enumerate(runs):
        for reason in run.unscored.items():
            found.setdefault(reason, []).append((index, run))
    return found


def _verdict(row: EvaluationRecord) -> str:
    """What `compare` found, in words, where it found something."""
    gain = value(row, "markov_bits_per_character") - value(row, "bits_per_character")
    words = {
        "beats": f"✓ beats it by {gain:.3f}",
        "level": f"≈ level ({-gain:+.3f})",
        "behind": f"✗ behind by {-gain:.3f}",
    }
    return words[compare(row)]


def _versions(run: Run) -> str:
    versions = run.config.get("versions")
    return ", ".join(f"{name} {version}" for name, version in versions.items()) if isinstance(versions, dict) else ""


def _path(run: Run) -> str:
    """Where the run lies, unless its name says so already."""
    return "" if run.name.endswith(f"({run.path})") else str(run.path)


def _definition(task: str) -> str:
    """What the task consists of, in the evaluation's own words; empty for a task of another version."""
    from upscale.evaluation.tasks import TASKS

    return TASKS[task].definition if task in TASKS else ""


def _setting(run: Run, section: str, key: str) -> str:
    given = run.setting(section, key)
    return UNKNOWN if given is None else str(given)


def _is_corpus(run: Run) -> bool:
    return run.setting("data", "kind") == "corpus"


def _sources(run: Run) -> str:
    """The kinds of source, with their weights where there are several; a corpus by its name."""
    if _is_corpus(run):
        corpora = run.setting("data", "corpora") or []
        return ", ".join(str(corpus.get("path")) for corpus in corpora if isinstance(corpus, dict)) or "corpus"
    given = run.setting("data", "sources")
    sources = [source for source in given if isinstance(source, dict)] if isinstance(given, list) else []
    if len(sources) < 2:
        return str(sources[0].get("kind", UNKNOWN)) if sources else UNKNOWN
    return ", ".join(f"{source.get('kind')} ({source.get('weight', 1)})" for source in sources)


def _parameters(run: Run) -> str:
    """The model's size to three digits; empty where its config is not known or is of another version."""
    try:
        total = costs.parameters(ModelConfig.model_validate(run.config["model"]))
    except (KeyError, TypeError, ValueError):
        return ""
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
    return f"{numpy.nanmax(memory):.1f}" if numpy.isfinite(memory).any() else UNKNOWN


def _baseline(row: EvaluationRecord, kind: str) -> str:
    bits, order = value(row, f"{kind}_bits_per_character"), value(row, f"{kind}_order")
    return _bits(bits) + (f" ({order:.0f})" if bits == bits and order == order else "")


def _score(row: EvaluationRecord) -> str:
    error = value(row, "standard_error")
    return _bits(value(row, "bits_per_character")) + (f" ± {error:.3f}" if error == error else "")


def _bits(bits: float) -> str:
    return UNKNOWN if math.isnan(bits) else f"{bits:.3f}"


def _from_a_minute_on(seconds: float) -> str:
    return duration(seconds) if seconds >= 60 else ""
