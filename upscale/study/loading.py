"""Reading a study file, with every problem of it at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pydantic

from upscale.config.problems import found_in, nearest
from upscale.files import read_yaml
from upscale.study import budgets
from upscale.study.schema import AXES, Grid, Study, failure


def load(path: Path) -> Study | Grid:
    """What a study file says, a Grid where it has axes.

    Raises UserError, which names every unknown key, wrong type and unknown name.
    """
    forms = f"a study is a mapping with the keys {', '.join(Study.model_fields)}, or {', '.join(Grid.model_fields)}"
    tree = read_yaml(path, "study", forms)
    kind = Grid if "axes" in tree else Study
    try:
        study = kind.model_validate(tree)
    except pydantic.ValidationError as error:
        raise failure(path, [f"{key}: {text}" for key, text in found_in(kind, tree, error).items()]) from None
    problems = list(_unknown_names(study) if isinstance(study, Study) else _problems_of_grid(study))
    if len(set(study.seeds)) < len(study.seeds):
        problems.append(f"seeds: {study.seeds} names a seed twice")
    if problems:
        raise failure(path, problems)
    return budgets.expanded(study) if isinstance(study, Study) else study


def _unknown_names(study: Study) -> Iterator[str]:
    """Stages and arms that are named but not there, twice in a chain, or in vain."""
    stages, arms = study.stages, study.arms
    for arm, steps in arms.items():
        names = [step.stage for step in steps]
        for place, step in enumerate(steps):
            if step.stage not in stages:
                yield f"arms.{arm}[{place}]: no stage {step.stage}; {nearest(step.stage, stages)}"
            if names.index(step.stage) != place:
                yield f"arms.{arm}[{place}]: stage {step.stage} twice in one arm; give the second a name of its own"
            for key in ("reinitialize", "rows", "control", "mix") if place == 0 else ():
                if getattr(step, key) not in (None, "none", [], {}):
                    yield f"arms.{arm}[0].{key}: the first stage begins with random weights anyway; leave it out"
            for part, stage in step.mix.items():
                if stage not in stages:
                    yield f"arms.{arm}[{place}].mix.{part}: no stage {stage}; {nearest(stage, stages)}"
        for other, others in arms.items():
            if other != arm and others == steps and list(arms).index(other) < list(arms).index(arm):
                yield f"arms.{arm}: is the same chain as arms.{other}"
    used = {name for steps in arms.values() for step in steps for name in (step.stage, *step.mix.values())}
    for stage, settings in stages.items():
        if stage not in used:
            yield f"stages.{stage}: no arm uses it"
        if settings.like is not None and settings.like not in stages:
            yield f"stages.{stage}.like: no stage {settings.like}; {nearest(settings.like, stages)}"
    yield from budgets.problems(study)
    if study.baseline not in arms:
        yield f"baseline: no arm {study.baseline}; {nearest(study.baseline, arms)}"
    for place, metric in enumerate(study.compare):
        having = [arm for arm, steps in arms.items() if metric.stage in [step.stage for step in steps]]
        if metric.stage not in stages:
            yield f"compare[{place}].stage: no stage {metric.stage}; {nearest(metric.stage, stages)}"
        elif study.baseline in arms and (study.baseline not in having or len(having) < 2):
            yield f"compare[{place}].stage: {metric.stage} must be in the baseline {study.baseline} and another arm"


def _problems_of_grid(grid: Grid) -> Iterator[str]:
    """Axes that the report needs and are not there, points that two axes call the same, and what is said in vain."""
    for axis in AXES[grid.report]:
        if axis not in grid.axes:
            yield f"axes: report: {grid.report} needs an axis {axis}; there are {', '.join(grid.axes)}"
        elif len(grid.axes[axis]) < 2:
            yield f"axes.{axis}: one point is nothing to compare; give two or more"
    owners: dict[str, str] = {}
    for axis, points in grid.axes.items():
        for name in points:
            if owners.setdefault(name, axis) != axis:
                yield f"axes.{axis}.{name}: axes.{owners[name]} has a point of this name; call one of them differently"
    if grid.report != "scaling" and grid.next:
        yield f"next: a {grid.report} study foretells no width; leave it out"
    if grid.report != "scaling" and grid.finetune:
        yield f"finetune: a {grid.report} study compares trainings at their own rates; leave it out"
    if grid.next and grid.next.config is None and grid.config is None:
        yield "next.config: none here and none of the whole grid; give one of them"
