"""The members of a study: which trainings its arms and seeds need, each once, and every mistake in them beforehand."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from upscale import schedule
from upscale.checkpoint import layout, manifest, run_directory, warm_start
from upscale.config import AUTO, Config
from upscale.config import files as config_files
from upscale.corpora.shards import index
from upscale.data import training_rows
from upscale.errors import UserError
from upscale.evaluation import overlap, suite
from upscale.evaluation.tasks import TEXTS
from upscale.files import reads_as_itself
from upscale.study.schema import Metric, Step, Study, failure

# The study decides these, so that members fit together.
OWN_KEYS = ("run.name", "run.dir", "run.seed", "run.resume", "init.from", "init.step", "init.reinitialize")
# A member that has begun must still be of the same experiment; that corpora are the same is checked by their content.
FIXED_SECTIONS = ("model", "mup", "optimizer", "schedule", "data", "init", "run.seed", "run.steps", "evaluation.slices")
MOVABLE_KEYS = ("data.corpora", "data.ahead", "data.workers", "init.from")
UNEQUAL = 0.01


@dataclass(frozen=True)
class Member:
    """One training: a stage after a chain of others, for one seed."""

    name: str
    stage: str
    seed: int
    config_path: str
    overrides: tuple[str, ...]
    config: Config
    before: Member | None
    """The member whose weights it begins with."""

    @property
    def directory(self) -> Path:
        return Path(self.config.run.dir)

    @property
    def arguments(self) -> list[str]:
        """What `upscale train` is given."""
        return ["--config", self.config_path, *self.overrides]

    @cached_property
    def instances(self) -> int:
        """Rows it trains on."""
        return schedule.planned_instances(self.config.schedule, self.config.data.lanes, self.config.run.steps)

    @property
    def tokens(self) -> int:
        return self.instances * self.config.model.context

    def counters(self) -> dict:
        """Those of its newest complete checkpoint; empty without one."""
        folder = self.directory / layout.CHECKPOINTS
        for step in reversed(manifest.steps(folder)):
            try:
                return manifest.read(manifest.step_folder(folder, step))["counters"]
            except manifest.InvalidCheckpoint:
                continue
        return {}

    def seen(self) -> int:
        """Instances of its newest complete checkpoint; 0 without one."""
        return self.counters().get("instances", 0)

    def finished(self) -> bool:
        """Whether it has trained to its end and measured what it ended with."""
        counters = self.counters()
        return counters.get("instances", 0) >= self.instances and not counters.get("evaluation_owed")


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
                found.update({member.name: member for member in chain})
        return list(found.values())

    def chain_before(self, arm: str, stage: str) -> list[Member]:
        """The members of an arm before one of its stages; of the first seed, since all train on equally much."""
        chain = self.chains[arm, self.study.seeds[0]]
        return chain[: [member.stage for member in chain].index(stage)]

    def tokens_before(self, arm: str, stage: str) -> int:
        return sum(member.tokens for member in self.chain_before(arm, stage))

    def arms_with(self, stage: str) -> list[str]:
        return [arm for arm, steps in self.study.arms.items() if stage in [step.stage for step in steps]]


def make(
    path: Path, study: Study, overrides: Sequence[str] = (), runs: Path | None = None, to: Path | None = None
) -> Plan:
    """Raises UserError with the mistakes of every member, before anything is started."""
    folder = runs or Path(study.runs if study.runs != AUTO else f"runs/{study.name}")
    to = to or (Path(study.to) if study.to != AUTO else folder)
    problems = list(_problems_of_settings(study, overrides))
    chains: dict[tuple[str, int], list[Member]] = {}
    for seed in study.seeds:
        for arm, steps in study.arms.items():
            try:
                chains[arm, seed] = _chain(study, steps, seed, overrides, folder)
            except _StageError as error:
                problems += error.problems
    if not problems:
        plan = Plan(study, folder, to, chains)
        problems = [*_problems_of_members(plan), *_problems_of_budgets(plan)]
    if problems:
        raise failure(path, list(dict.fromkeys(problems)))
    return plan


class _StageError(Exception):
    def __init__(self, problems: list[str]):
        self.problems = problems


def seed_of(stage: str, seed: int) -> int:
    """`run.seed` of a stage: of its own, so that what begins anew in it is not what an earlier stage began with, and
    two stages on one corpus read different windows. Its last three digits are the study's."""
    return zlib.crc32(stage.encode()) * 1000 + seed


def _chain(study: Study, steps: list[Step], seed: int, overrides: Sequence[str], folder: Path) -> list[Member]:
    chain: list[Member] = []
    labels: list[str] = []
    for step in steps:
        stage, before = study.stages[step.stage], chain[-1] if chain else None
        fresh = stage.reinitialize if step.reinitialize is None else step.reinitialize
        labels.append("-".join([step.stage, *(fresh if fresh != stage.reinitialize else [])]))
        if step.reinitialize == [] and stage.reinitialize:
            labels[-1] += "-whole"
        name = f"{'.'.join(labels)}-{seed}"
        own = {"run.name": name, "run.dir": str(folder / name), "run.seed": seed_of(step.stage, seed)}
        if before:
            own |= {"init.from": str(before.directory), "init.reinitialize": fresh}
        every = [*_typed(study.set | stage.set), *overrides, *_typed(own)]
        try:
            config = config_files.load(stage.config, every).resolved()
        except config_files.ConfigError as error:
            raise _StageError([f"stage {step.stage}: {problem}" for problem in error.problems]) from None
        except UserError as error:
            raise _StageError([f"stage {step.stage}: {error}"]) from None
        chain.append(Member(name, step.stage, seed, stage.config, tuple(every), config, before))
    return chain


def _typed(settings: dict) -> list[str]:
    """`section.key=value` words; JSON is YAML, and quotes are left out where the text needs none."""
    plain = {key: isinstance(value, str) and reads_as_itself(value) for key, value in settings.items()}
    return [
        f"{key}={value if plain[key] else json.dumps(value, default=str, ensure_ascii=False)}"
        for key, value in settings.items()
    ]


def _problems_of_settings(study: Study, overrides: Sequence[str]) -> Iterator[str]:
    places = [("set", key) for key in study.set] + [("override", text.partition("=")[0]) for text in overrides]
    places += [(f"stages.{name}.set", key) for name, stage in study.stages.items() for key in stage.set]
    for place, key in places:
        if any(own == key or own.startswith(f"{key}.") for own in OWN_KEYS):
            yield f"{place}: {key} is set by the study itself, for every member; leave it out"


def _problems_of_members(plan: Plan) -> Iterator[str]:
    """What no single config shows: files that are not there, models that do not fit, runs of another experiment."""
    configs = {member.stage: member.config for member in reversed(plan.members())}
    problems = [
        f"stage {stage}: {problem}"
        for stage, config in configs.items()
        for problem in _problems_of_files(config, [metric for metric in plan.study.compare if metric.stage == stage])
    ]
    yield from problems or _problems_of_held_out_texts(plan, configs)
    for member in plan.members():
        if member.before:
            source, instances = member.before.config, member.before.instances
            found = [text.strip() for text in warm_start.mismatches(source, member.config)]
            found += filter(None, [warm_start.sleepers(source, instances, member.config)])
            for problem in found:
                yield f"stage {member.stage} after {member.before.stage}: {problem}"
        yield from _changes(member)


def _problems_of_files(config: Config, metrics: list[Metric]) -> Iterator[str]:
    missing = []
    for corpus in config.data.corpora:
        try:
            index.read(Path(corpus.path))
        except UserError as error:
            missing.append(f"data.corpora: {error}")
    yield from missing
    if missing:
        return
    try:
        training_rows.open_rows(config)
        if config.data.kind == "synthetic":
            for source in config.data.sources:  # a source that cannot write, such as an NCA with an impossible band
                source.build(config.model.vocabulary)
        names = suite.check_names(config.evaluation.tasks) if config.evaluation.every else []
        texts = {name: TEXTS[name].load(data_dir=config.evaluation.data_dir) for name in names if name in TEXTS}
    except UserError as error:
        yield str(error)
        return
    for metric in metrics:
        if metric.task not in names:
            yield (
                f"{metric.task} is compared, but not measured: name it in evaluation.tasks and set evaluation.every "
                f"(now {config.evaluation.every})"
            )
            continue
        split = texts[metric.task].split if metric.task in texts else "generated"
        if split != metric.split:
            yield (
                f"{metric.task} ({metric.split}) is compared, but {metric.task} ({split}) measured: set "
                "evaluation.data_dir to the folder of the prepared corpora, or compare with "
                f"split: {split}"
            )


def _problems_of_held_out_texts(plan: Plan, configs: dict[str, Config]) -> Iterator[str]:
    """A compared text that its own stage or an earlier one trains on."""
    for metric in plan.study.compare:
        if metric.task not in TEXTS:
            continue
        text = TEXTS[metric.task].load(data_dir=configs[metric.stage].evaluation.data_dir)
        earlier = [m.stage for arm in plan.arms_with(metric.stage) for m in plan.chain_before(arm, metric.stage)]
        for stage in dict.fromkeys([metric.stage, *earlier]):
            for warning in overlap.overlaps(configs[stage], [text]):
                yield f"stage {stage}: {warning.removeprefix('WARNING: ')}"


def _changes(member: Member) -> Iterator[str]:
    """A member that has begun with other settings: its results would be of neither."""
    saved = member.directory / layout.CONFIG
    if not saved.is_file() or not member.seen():
        return
    old = config_files.as_tree(run_directory.read_config(member.directory).resolved())
    different = run_directory.changes(old, config_files.as_tree(member.config))
    found = [
        f"{key} = {was!r}, now {now!r}"
        for key, (was, now) in different.items()
        if key.startswith(FIXED_SECTIONS) and not key.startswith(MOVABLE_KEYS)
    ]
    if found:
        yield (
            f"{member.directory} has begun with {'; '.join(found)}: set that back, remove the folder and those that "
            "continue it, or choose another one with --runs"
        )


def _problems_of_budgets(plan: Plan) -> Iterator[str]:
    """Arms may differ only by stages of equally many tokens, or by having none, as training from scratch."""
    if plan.study.budget == "any":
        return
    for metric in plan.study.compare:
        before = {arm: plan.chain_before(arm, metric.stage) for arm in plan.arms_with(metric.stage)}
        shared = set.intersection(*({member.stage for member in chain} for chain in before.values()))
        own = {arm: sum(m.tokens for m in chain if m.stage not in shared) for arm, chain in before.items()}
        some = [tokens for tokens in own.values() if tokens]
        if some and max(some) > (1 + UNEQUAL) * min(some):
            told = ", ".join(f"{arm} {tokens:,}" for arm, tokens in own.items())
            yield (
                f"the arms have trained on unequal numbers of tokens before {metric.stage}, beside stages that all of "
                f"them have: {told}. Make schedule.instances times model.context equal there, or set budget: any"
            )
