"""Substitutive budgets: how much less of a stage an arm needs to end as low as the baseline ends.

An arm that ends with the stage is copied for each smaller budget, and so is the stage, with the same random numbers.
Each copy trains to the end of its own schedule: a point on the way of a longer one is no finished training.
"""

from __future__ import annotations

from collections.abc import Iterator

from upscale.study.schema import Study


def name_at(name: str, instances: int) -> str:
    """What an arm's or a stage's copy with a smaller budget is called."""
    return f"{name}_at_{instances}"


def problems(study: Study) -> Iterator[str]:
    """Mistakes in `substitute`: a stage that is not there or not last, names that are taken, budgets said twice."""
    wanted = study.substitute
    if wanted is None:
        return
    if wanted.stage not in study.stages:
        yield f"substitute.stage: no stage {wanted.stage}; allowed: {', '.join(study.stages)}"
        return
    if len(set(wanted.instances)) < len(wanted.instances):
        yield f"substitute.instances: {wanted.instances} names a budget twice"
    if wanted.stage not in [metric.stage for metric in study.compare]:
        yield f"substitute.stage: {wanted.stage} is not compared; name it in compare"
    for arm in wanted.arms or []:
        if arm not in study.arms:
            yield f"substitute.arms: no arm {arm}; allowed: {', '.join(study.arms)}"
        elif wanted.stage not in [step.stage for step in study.arms[arm]]:
            yield f"substitute.arms: {arm} has no stage {wanted.stage}; leave it out"
    for arm, steps in study.arms.items():
        if wanted.arms is not None and arm not in wanted.arms:
            continue
        if wanted.stage in [step.stage for step in steps[:-1]]:
            yield (
                f"substitute.stage: {wanted.stage} is not the last stage of arms.{arm}, whose later stages would have "
                "to be repeated too; name a stage that ends every arm"
            )
        if steps[-1].stage == wanted.stage and "schedule.instances" in steps[-1].set:
            yield f"arms.{arm}[{len(steps) - 1}].set: schedule.instances is what substitute varies; leave it out"
        for instances in wanted.instances:
            if name_at(arm, instances) in study.arms:
                yield f"arms.{name_at(arm, instances)}: substitute makes an arm of this name; call yours differently"


def expanded(study: Study) -> Study:
    """The study with the copies that `substitute` asks for; it has no problems."""
    wanted = study.substitute
    if wanted is None:
        return study
    stages, arms = dict(study.stages), dict(study.arms)
    for instances in sorted(wanted.instances):
        stage = study.stages[wanted.stage]
        own = {"set": stage.set | {"schedule.instances": instances}, "like": stage.like or wanted.stage}
        stages[name_at(wanted.stage, instances)] = stage.model_copy(update=own)
        for arm, steps in study.arms.items():
            if steps[-1].stage == wanted.stage and (wanted.arms is None or arm in wanted.arms):
                last = steps[-1].model_copy(update={"stage": name_at(wanted.stage, instances)})
                arms[name_at(arm, instances)] = [*steps[:-1], last]
    return study.model_copy(update={"stages": stages, "arms": arms})


def family(study: Study, arm: str, stage: str) -> dict[int, str]:
    """The arms that are `arm` at smaller budgets of a stage: instances -> name; none where they are not asked for."""
    wanted = study.substitute
    if wanted is None or wanted.stage != stage or (wanted.arms is not None and arm not in wanted.arms):
        return {}
    return {instances: name_at(arm, instances) for instances in sorted(wanted.instances)}
