"""The plan of a study of arms: which trainings its arms and seeds need, each once, and every mistake beforehand."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from upscale.checkpoint import warm_start
from upscale.config import Config
from upscale.config import files as config_files
from upscale.errors import UserError
from upscale.evaluation import overlap
from upscale.evaluation.tasks import TEXTS
from upscale.study.members import (
    Member,
    as_overrides,
    changes,
    misfits,
    problems_of,
    problems_of_files,
    problems_of_settings,
)
from upscale.study.schema import UNEQUAL, Settings, Step, Study, failure

READ = {"model", "data", "evaluation"}
"""The sections of a config that name files or sources."""


@dataclass(frozen=True)
class Plan:
    study: Study
    folder: Path
    """Of the run directories."""
    to: Path
    """Folder of the results."""
    chains: dict[tuple[str, int], list[Member]]
    """The members of each arm and seed, first stage first."""

    def members(self, arms: list[str] | None = None) -> list[Member]:
        """Every training of these arms (None: all) once, each after the one it begins with; seed after seed."""
        found: dict[str, Member] = {}
        for (arm, _), chain in self.chains.items():
            if arms is None or arm in arms:
                for member in chain:
                    found.update({one.name: one for one in (*member.beside, member)})
        return list(found.values())

    def member(self, arm: str, seed: int, stage: str) -> Member:
        return next(member for member in self.chains[arm, seed] if member.stage == stage)

    def chain_before(self, arm: str, stage: str) -> list[Member]:
        """The members of an arm before one of its stages; of the first seed, since all train on equally much."""
        chain = self.chains[arm, self.study.seeds[0]]
        return chain[: [member.stage for member in chain].index(stage)]

    def all_before(self, arm: str, stage: str) -> list[Member]:
        """The same with those of whose weights the arm takes a part."""
        chain = self.chains[arm, self.study.seeds[0]]
        so_far = chain[: [member.stage for member in chain].index(stage) + 1]
        beside = {one.name: one for member in so_far for one in member.beside}
        return [*so_far[:-1], *(one for name, one in beside.items() if name not in {m.name for m in so_far})]

    def tokens_before(self, arm: str, stage: str) -> int:
        return sum(member.tokens for member in self.all_before(arm, stage))

    def arms_with(self, stage: str) -> list[str]:
        return [arm for arm, steps in self.study.arms.items() if stage in [step.stage for step in steps]]


def make(
    path: Path, study: Study, overrides: Sequence[str] = (), runs: Path | None = None, to: Path | None = None
) -> Plan:
    """The plan of a study of arms; raises UserError with the mistakes of every member, before anything is started."""
    folder, to = study.folders(runs, to)
    places = [("set", study.set), ("override", [text.partition("=")[0] for text in overrides])]
    places += [(f"stages.{name}.set", stage.set) for name, stage in study.stages.items()]
    own = [(f"arms.{arm}[{at}].set", step.set) for arm, steps in study.arms.items() for at, step in enumerate(steps)]
    problems = [*problems_of_settings([*places, *own]), *_problems_of_comparison(own)]
    chains: dict[tuple[str, int], list[Member]] = {}
    for seed in study.seeds:
        for arm, steps in study.arms.items():
            try:
                chains[arm, seed] = _chain(study, steps, seed, overrides, folder)
            except UserError as error:
                problems += problems_of(error)
    if not problems:
        plan = Plan(study, folder, to, chains)
        problems = [*_problems_of_members(plan), *_problems_of_budgets(plan)]
    if problems:
        raise failure(path, list(dict.fromkeys(problems)))
    return plan


def seed_of(stage: str, seed: int) -> int:
    """`run.seed` of a stage: of its own, so that what begins anew in it is not what an earlier stage began with, and
    two stages on one corpus read different windows. Its last three digits are the study's."""
    return zlib.crc32(stage.encode()) * 1000 + seed


def _chain(study: Study, steps: list[Step], seed: int, overrides: Sequence[str], folder: Path) -> list[Member]:
    """The members of an arm and seed; raises UserError with the problems of the first stage that has any."""
    chain: list[Member] = []
    labels: list[str] = []
    for step in steps:
        stage, before = study.stages[step.stage], chain[-1] if chain else None
        fresh = stage.reinitialize if step.reinitialize is None else step.reinitialize
        rows = stage.rows if step.rows is None else step.rows
        labels.append("-".join([step.stage, *(fresh if fresh != stage.reinitialize else []), *_differences(step)]))
        if step.reinitialize == [] and stage.reinitialize:
            labels[-1] += "-whole"
        name = f"{'.'.join(labels)}-{seed}"
        own = {"run.name": name, "run.dir": str(folder / name), "run.seed": seed_of(stage.like or step.stage, seed)}
        others = {part: _chain(study, [Step(stage=of)], seed, overrides, folder)[0] for part, of in step.mix.items()}
        if before:
            own |= {"init.from": str(before.directory), "init.reinitialize": fresh}
            own |= {f"init.rows.{key}": rule for key, rule in rows.model_dump().items() if rule != "carried"}
            own |= {"init.control": step.control} if step.control != "none" else {}
            own |= {"init.mix": {part: str(other.directory) for part, other in others.items()}} if others else {}
        every = [*as_overrides(study.set | stage.set | step.set), *overrides, *as_overrides(own)]
        try:
            config = config_files.load(stage.config, every).resolved()
        except UserError as error:
            raise config_files.ConfigError([f"stage {step.stage}: {each}" for each in problems_of(error)]) from None
        options = (*study.slurm.options, *stage.slurm)
        script, beside = study.slurm.script, tuple({one.name: one for one in others.values()}.values())
        chain.append(
            Member(name, step.stage, seed, stage.config, tuple(every), config, before, script, options, beside)
        )
    return chain


def _differences(step: Step) -> list[str]:
    """What tells a step's run directory from that of another arm of the same stage."""
    rows = step.rows.model_dump() if step.rows is not None else {}
    found = [f"{part}_{rule}" for part, rule in rows.items() if rule != "carried"]
    found += ["carried"] if step.rows is not None and not found else []
    found += [step.control] if step.control != "none" else []
    found += [f"{part}_of_{stage}" for part, stage in step.mix.items()]
    return found + [f"{key}_{value}" for key, value in sorted(step.set.items())]


def _problems_of_comparison(places: Sequence[tuple[str, Settings]]) -> Iterator[str]:
    """What an arm may not set by itself, since then arms are not measured alike."""
    for place, settings in places:
        for key in settings:
            if key.startswith("evaluation.") or key == "model.context":
                yield f"{place}: {key} must be the same for all arms; set it in the stage"


def _problems_of_members(plan: Plan) -> Iterator[str]:
    """What no single config shows: files that are not there, models that do not fit, runs of another experiment."""
    configs = {member.stage: member.config for member in reversed(plan.members())}
    varied = {(m.stage, m.config.model_dump_json(include=READ)): m.config for m in reversed(plan.members())}
    problems = [
        f"stage {stage}: {problem}"
        for (stage, _), config in varied.items()
        for problem in problems_of_files(config, [metric for metric in plan.study.compare if metric.stage == stage])
    ]
    yield from problems or _problems_of_held_out_texts(plan, configs)
    for member in plan.members():
        sources = [(member.before, member.config)] if member.before else []
        alone = warm_start.mixed(member.config)
        sources += [(one, alone[part]) for one in member.beside for part in _parts_of(one, member)]
        for source, config in sources:
            for problem in misfits(source, config):
                yield f"stage {member.stage} after {source.stage}: {problem}"
        yield from changes(member, growing=False)


def _parts_of(source: Member, member: Member) -> list[str]:
    return [part for part, path in member.config.init.mix.items() if path == str(source.directory)]


def _problems_of_held_out_texts(plan: Plan, configs: dict[str, Config]) -> Iterator[str]:
    """A compared text that its own stage or an earlier one trains on."""
    for metric in plan.study.compare:
        if metric.task not in TEXTS:
            continue
        text = TEXTS[metric.task].load(data_dir=configs[metric.stage].evaluation.data_dir)
        earlier = [m.stage for arm in plan.arms_with(metric.stage) for m in plan.all_before(arm, metric.stage)]
        for stage in dict.fromkeys([metric.stage, *earlier]):
            for warning in overlap.overlaps(configs[stage], [text]):
                yield f"stage {stage}: {warning.removeprefix('WARNING: ')}"


def _problems_of_budgets(plan: Plan) -> Iterator[str]:
    """Arms may differ only by stages of equally many tokens, or by having none, as training from scratch.

    Where weights of two stages are mixed, each part of them has been trained on so many.
    """
    if wanted := plan.study.substitute:
        arm = plan.arms_with(wanted.stage)[0]
        whole = plan.chains[arm, plan.study.seeds[0]][-1].instances
        for rows in wanted.instances:
            if rows >= whole:
                yield f"substitute.instances: {rows} is not below the {whole:,} of the whole stage {wanted.stage}"
    if plan.study.budget == "any":
        return
    for metric in plan.study.compare:
        before = {arm: plan.chain_before(arm, metric.stage) for arm in plan.arms_with(metric.stage)}
        shared = set.intersection(*({(m.stage, m.tokens) for m in chain} for chain in before.values()))
        own = {arm: sum(m.tokens for m in chain if (m.stage, m.tokens) not in shared) for arm, chain in before.items()}
        some = [tokens for tokens in own.values() if tokens]
        if some and max(some) > (1 + UNEQUAL) * min(some):
            told = ", ".join(f"{arm} {tokens:,}" for arm, tokens in own.items())
            yield (
                f"the arms have trained on unequal numbers of tokens before {metric.stage}, beside stages that all of "
                f"them have: {told}. Make schedule.instances times model.context equal there, or set budget: any"
            )
        last = {arm: plan.member(arm, plan.study.seeds[0], metric.stage).tokens for arm in before}
        if max(last.values()) > (1 + UNEQUAL) * min(last.values()):
            told = ", ".join(f"{arm} {tokens:,}" for arm, tokens in last.items())
            yield f"the arms train on unequal numbers of tokens in {metric.stage}: {told}. Or set budget: any"
