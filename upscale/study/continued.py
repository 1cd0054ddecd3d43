"""The training that a grid's trainings continue: one for each architecture and seed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from upscale.config import files as config_files
from upscale.study.members import Member, as_overrides, misfits, problems_of_files
from upscale.study.plan import seed_of
from upscale.study.schema import Grid

STAGE = "before"
SHARED = ("model.", "mup.", "engine.")


def before(study: Grid, place: Sequence[str], seed: int, overrides: Sequence[str], folder: Path) -> Member | None:
    """What the training at a place begins with; None where the grid says nothing. Places whose points set the same of
    `model`, `mup` and `engine` have the same one."""
    if study.before is None:
        return None
    points = {name: study.axes[axis][name] for axis, name in zip(study.axes, place, strict=True)}
    settings = _shared(study.set)
    for point in points.values():
        settings |= _shared(point.set)
    label = ".".join([STAGE, *(name for name, point in points.items() if _shared(point.set))])
    name = f"{label}-{seed}"
    own = {"run.name": name, "run.dir": str(folder / name), "run.seed": seed_of(STAGE, seed)}
    words = [
        *as_overrides(settings | study.before.set),
        *(word for word in overrides if word.startswith(SHARED)),
        *as_overrides(own),
    ]
    config = config_files.load(study.before.config, words).resolved()
    scripts = [point.script for point in points.values() if point.script]
    options = (*study.slurm.options, *(word for point in points.values() for word in point.slurm))
    script = scripts[-1] if scripts else study.slurm.script
    return Member(name, label, seed, study.before.config, tuple(words), config, None, script, options)


def _shared(settings: dict) -> dict:
    return {key: value for key, value in settings.items() if key.startswith(SHARED)}


def problems(members: Iterable[Member]) -> Iterator[str]:
    """What the trainings before these lack, and where their weights do not fit."""
    looked_at: set[str] = set()
    for member in members:
        source = member.before
        if source is None:
            continue
        if (data := repr((source.config.data, source.config.model.vocabulary))) not in looked_at:
            looked_at.add(data)
            yield from (f"{source.stage}: {problem}" for problem in problems_of_files(source.config))
        for problem in misfits(source, member.config):
            yield f"{member.stage} after {source.stage}: {problem}"
