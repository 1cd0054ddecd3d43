"""Fine-tuning from a pre-trained run against the same from scratch: who needs fewer instances, who ends lower, and what
was forgotten. The runs' configs say which is which: `init.from` names a run, or is null.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from upscale.evaluation.record import EvaluationRecord
from upscale.report.runs import UNKNOWN, Run, TaskKey, count, task_title, value

_SAME = (
    *(("model", "width"), ("model", "depth"), ("model", "heads"), ("model", "context")),
    *(("data", "split"), ("schedule", "batch")),
)


@dataclass(frozen=True)
class Pair:
    """Two fine-tunings of one model on one corpus."""

    pretrained: Run
    scratch: Run

    @property
    def tasks(self) -> list[TaskKey]:
        """The datasets that both have a number for."""
        return [key for key in self.pretrained.scored if key in self.scratch.scored]


@dataclass(frozen=True)
class Comparison:
    """One dataset of a pair; bits per character, instances. NaN where it is not known or never happened."""

    scratch_best: float
    scratch_best_instances: float
    pretrained_reaches: float
    """Instances after which the pre-trained run is as low as the best of the run from scratch."""
    pretrained_best: float
    scratch_reaches: float
    """Instances after which the run from scratch is as low as the best of the pre-trained run."""
    pretrained_final: float
    scratch_final: float
    final_margin: float
    """Two standard errors of the difference of the final values."""
    before: float
    """The pre-trained run before its first step."""
    before_margin: float

    @property
    def gain(self) -> float:
        """How much lower the pre-trained run ends."""
        return self.scratch_final - self.pretrained_final

    @property
    def saved(self) -> float:
        """How many instances sooner the pre-trained run reaches the best of the run from scratch."""
        return self.scratch_best_instances - self.pretrained_reaches

    @property
    def forgotten(self) -> float:
        """How much higher the pre-trained run ends than it began; negative where it has learned."""
        return self.pretrained_final - self.before


def pairs(runs: Sequence[Run]) -> list[Pair]:
    """Every fine-tuning from a pre-trained run with the run from scratch that fits it, of the same seed if possible.

    Fitting means: the same texts, model and batches.
    """
    tuned = [run for run in runs if run.setting("data", "kind") == "corpus"]
    found = []
    for run in tuned:
        if run.setting("init", "from") is None:
            continue
        others = [o for o in tuned if o.setting("init", "from") is None and _what(o) == _what(run)]
        others.sort(key=lambda other: other.setting("run", "seed") != run.setting("run", "seed"))
        found += [Pair(run, others[0])] if others else []
    return found


def compare(pair: Pair, key: TaskKey) -> Comparison:
    """The numbers of one dataset of `pair.tasks`."""
    tuned, scratch = pair.pretrained.scored[key], pair.scratch.scored[key]
    best, other_best = (min(rows, key=_bits) for rows in (scratch, tuned))
    return Comparison(
        scratch_best=_bits(best),
        scratch_best_instances=value(best, "instances"),
        pretrained_reaches=instances_to_reach(tuned, _bits(best)),
        pretrained_best=_bits(other_best),
        scratch_reaches=instances_to_reach(scratch, _bits(other_best)),
        pretrained_final=_bits(tuned[-1]),
        scratch_final=_bits(scratch[-1]),
        final_margin=margin(tuned[-1], scratch[-1]),
        before=_bits(tuned[0]) if value(tuned[0], "instances") == 0 else math.nan,
        before_margin=margin(tuned[0], tuned[-1]),
    )


def instances_to_reach(rows: Sequence[EvaluationRecord], bits: float) -> float:
    """Instances after which evaluations, in their order, first are at or below `bits`: on the line between the two
    evaluations around it; NaN when they never are."""
    for before, after in zip([None, *rows], rows, strict=False):
        if _bits(after) <= bits:
            if before is None or _bits(before) == _bits(after):
                return value(after, "instances")
            share = (_bits(before) - bits) / (_bits(before) - _bits(after))
            begin, end = value(before, "instances"), value(after, "instances")
            return begin + share * (end - begin)
    return math.nan


def trained_task(pair: Pair) -> TaskKey | None:
    """The dataset that stands for the corpus: the one its folder is named after, else where scratch learned most."""
    corpora = pair.pretrained.setting("data", "corpora")
    paths = [str(corpus.get("path", "")) for corpus in corpora if isinstance(corpus, dict)] if corpora else []
    words = {word for path in paths for word in re.split(r"[^a-z0-9]+", Path(path).name.lower())}
    for key in pair.tasks:
        if key[0] in words:
            return key
    return max(
        pair.tasks, key=lambda key: _bits(pair.scratch.scored[key][0]) - compare(pair, key).scratch_best, default=None
    )


def sentences(pair: Pair) -> list[str]:
    """What a reader must know, in plain words, whichever way it goes."""
    key = trained_task(pair)
    if key is None:
        return [f"{pair.pretrained.name} and {pair.scratch.name} have no evaluation in common."]
    found, title = compare(pair, key), task_title(key)
    ends = f"{title}: fine-tuning ends at {found.pretrained_final:.3f} bits per character from the pre-trained weights"
    ends += f" and at {found.scratch_final:.3f} from scratch."
    if abs(found.gain) <= found.final_margin:
        verdict = f"The difference, {found.gain:+.3f}, is within two standard errors ({found.final_margin:.3f}): level."
    elif found.gain > 0:
        verdict = f"Pre-training helped: {found.gain:.3f} bits less (two standard errors: {found.final_margin:.3f})."
    else:
        verdict = f"Pre-training hurt: {-found.gain:.3f} bits more (two standard errors: {found.final_margin:.3f})."
    if not math.isnan(found.pretrained_reaches):
        reach = (
            f"From the pre-trained weights it takes {found.pretrained_reaches:,.0f} instances to reach the best of the "
            f"run from scratch ({found.scratch_best:.3f} after {found.scratch_best_instances:,.0f})."
        )
    else:
        reach = (
            f"From the pre-trained weights the best of the run from scratch, {found.scratch_best:.3f}, was never "
            f"reached; their own best, {found.pretrained_best:.3f}, takes {found.scratch_reaches:,.0f} from scratch."
        )
    limits = "These errors are over slices of the text. Trainings with other seeds may differ by more."
    return [ends, f"{verdict} {limits}", reach, _forgetting(pair, key)]


def _forgetting(pair: Pair, trained: TaskKey) -> str:
    others = {task_title(key): compare(pair, key) for key in pair.tasks if key != trained}
    known = {title: found for title, found in others.items() if not math.isnan(found.before)}
    worse = [f"{title} (+{c.forgotten:.2f})" for title, c in known.items() if c.forgotten > c.before_margin]
    better = [title for title, c in known.items() if -c.forgotten > c.before_margin]
    if not known:
        return "Nothing is known about forgetting: no other dataset was measured before the first step."
    text = f"Of {len(known)} other datasets {len(worse)} got worse than before fine-tuning"
    return f"{text}{': ' + ', '.join(worse) if worse else ''}; {len(better)} got better."


def cells(pair: Pair, key: TaskKey) -> list[str]:
    """The numbers of one dataset as the page's table shows them, in the order of its columns."""
    found = compare(pair, key)
    known = found.before == found.before
    return [
        f"{found.scratch_best:.3f} ({found.scratch_best_instances:,.0f})",
        count(found.pretrained_reaches) if found.pretrained_reaches == found.pretrained_reaches else "never",
        count(found.saved),
        f"{found.pretrained_final:.3f}",
        f"{found.scratch_final:.3f}",
        f"{found.gain:+.3f} ± {found.final_margin:.3f}",
        f"{found.before:.3f}" if known else UNKNOWN,
        f"{found.forgotten:+.3f}" if known else UNKNOWN,
    ]


def _what(run: Run) -> tuple:
    corpora = run.setting("data", "corpora")
    return (str(corpora), *(str(run.setting(*place)) for place in _SAME))


def _bits(row: EvaluationRecord) -> float:
    return value(row, "bits_per_character")


def margin(one: EvaluationRecord, other: EvaluationRecord) -> float:
    """Two standard errors of the difference of two scores.

    Paired where both were measured on the same slices, from the differences of their groups; else as if independent,
    which is larger.
    """
    groups = [record.group_bits_per_character or [] for record in (one, other)]
    same = (one.digest, one.samples) == (other.digest, other.samples)
    if same and len(groups[0]) == len(groups[1]) > 1:
        differences = [here - there for here, there in zip(*groups, strict=True)]
        return 2 * statistics.stdev(differences) / math.sqrt(len(differences))
    errors = [value(row, "standard_error") for row in (one, other)]
    return 2 * math.sqrt(sum(error**2 for error in errors if error == error))
