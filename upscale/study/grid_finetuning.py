"""The fine-tunings of a grid: each pre-training goes on with a text, beside the same from random weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from upscale.config import Config
from upscale.config import files as config_files
from upscale.report import canvas, multiples
from upscale.study.members import Member, as_overrides, changes, misfits, problems_of_files
from upscale.study.page import Page, Table
from upscale.study.results import Outcome, Spread, outcome
from upscale.study.schema import Finetuning, Metric

# The fine-tuned model is the pre-trained one, on the same engine; dropout is the fine-tuning's own.
TAKEN, OWN = ("model", "mup", "engine"), ("model.dropout",)
NOTE = (
    "Bits per character of held-out text at the end of the fine-tuning; of several seeds the mean (lowest to highest). "
    "Gain: by how many bits the one from pre-trained weights ends lower, seed by seed. Speed-up: rows of the one from "
    "scratch over rows of the pre-trained one to be as low as scratch ends; pre-training is not counted."
)


class Pair(NamedTuple):
    """The fine-tunings after one training of the grid."""

    before: Member
    tuned: Member
    """From its weights."""
    scratch: Member


def pair(name: str, wanted: Finetuning, before: Member, overrides: Sequence[str], known: dict[str, Member]) -> Pair:
    """The fine-tunings after one training of the grid; `known` keeps those from scratch, which trainings that differ in
    their data only share.

    The number of rows before is in the name: a pre-training that has grown is fine-tuned anew. Raises UserError.
    """
    sections = config_files.as_tree(before.config)
    taken = {f"{section}.{key}": value for section in TAKEN for key, value in sections[section].items()}
    settings = {key: value for key, value in taken.items() if key not in OWN} | wanted.set
    # how long the grid trains is not how long it fine-tunes
    words = [*as_overrides(settings), *(word for word in overrides if not word.startswith("schedule."))]
    slurm = (*before.slurm, *wanted.slurm)

    def member(kind: str, origin: Member | None) -> Member:
        label = f"{before.stage}.{name}.{kind}-{before.seed}"
        own = {"run.name": label, "run.seed": before.seed, "run.dir": str(before.directory.parent / label)}
        own |= {"init.from": str(origin.directory)} if origin else {}
        every = (*words, *as_overrides(own))
        config = config_files.load(wanted.config, every).resolved()
        return Member(label, before.stage, before.seed, wanted.config, every, config, origin, before.script, slurm)

    scratch = member("scratch", None)
    tuned = member(f"{before.instances}", before)
    return Pair(before, tuned, known.setdefault(_without_names(scratch.config), scratch))


def _without_names(config: Config) -> str:
    tree = config_files.as_tree(config)
    return repr(tree | {"run": {key: value for key, value in tree["run"].items() if key not in ("name", "dir")}})


def problems(name: str, wanted: Finetuning, pairs: Sequence[Pair]) -> Iterator[str]:
    """Texts that are not there or not measured, weights that do not fit, and runs that began otherwise."""
    metric = Metric(stage=name, task=wanted.task, split=wanted.split)
    if pairs:
        yield from (f"finetune.{name}: {problem}" for problem in problems_of_files(pairs[0].tuned.config, [metric]))
    for before, tuned, scratch in pairs:
        yield from (f"finetune.{name} after {before.name}: {problem}" for problem in misfits(before, tuned.config))
        for member in (tuned, scratch):
            yield from changes(member, growing=True)


def outcomes(wanted: Finetuning, pairs: Sequence[Pair]) -> list[Outcome]:
    """One for each seed whose two fine-tunings have finished and measured the text."""
    found = []
    key = (wanted.task, wanted.split)
    for before, *members in pairs:
        if all(member.finished() for member in members):
            tuned, scratch = (member.run.scored.get(key, []) for member in members)
            if tuned and scratch:
                found.append(outcome(tuned, scratch, members[0].config.model.context, before.tokens))
    return found


def page(title: str, wanted: Finetuning, by_width: Sequence[tuple[int, int, Sequence[Pair]]]) -> Page:
    """Table and picture of one text over the widths: (width, parameters, pairs of every seed), smallest first."""
    known = [(width, size, found) for width, size, pairs in by_width if (found := outcomes(wanted, pairs))]
    if not known:
        return Page()
    heads = ["width", "parameters", "pre-trained", "scratch", "gain", "speed-up", "seeds"]
    rows, record = [], []
    for width, size, found in known:
        columns = [[one.final for one in found], [one.baseline_final for one in found], [one.gain for one in found]]
        numbers = [Spread.of(values).text(form) for values, form in zip(columns, (".3f", ".3f", "+.3f"), strict=True)]
        faster = Spread.of(one.speed_up for one in found).text(".2f")
        rows.append([str(width), f"{size:,}", *numbers, faster, str(len(found))])
        finals = {"pretrained": columns[0], "scratch": columns[1], "speed_up": [one.speed_up for one in found]}
        record.append({"width": width, "parameters": size, **finals})
    lines = []
    for place, (label, kind) in enumerate((("pre-trained", "final"), ("scratch", "baseline_final"))):
        values = [[getattr(one, kind) for one in found] for _, _, found in known]
        means = [math.fsum(each) / len(each) for each in values]
        sizes, look = [size for _, size, _ in known], canvas.look_of(place, marker_size=4)
        lines.append(multiples.Line(label, sizes, means, [*map(min, values)], [*map(max, values)], look))
    panel = multiples.Panel(f"{wanted.task} ({wanted.split})", lines)
    picture = multiples.draw([panel], "parameters", "bits per character", log_x=True)
    return Page([Table(title, heads, rows, NOTE)], {"": picture}, {"widths": record})
