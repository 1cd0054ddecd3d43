"""A study's members: what each trains, what it has trained, and every mistake in it before anything starts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from upscale import schedule
from upscale.checkpoint import layout, manifest, run_directory, warm_start
from upscale.config import Config
from upscale.config import files as config_files
from upscale.corpora.shards import index
from upscale.data import training_rows
from upscale.errors import UserError
from upscale.evaluation import suite
from upscale.evaluation.tasks import TEXTS
from upscale.files import reads_as_itself
from upscale.report.runs import Run, read_runs
from upscale.study.schema import Metric

# The study decides these, so that members fit together.
OWN_KEYS = ("run.name", "run.dir", "run.seed", "run.resume", "init.from", "init.step", "init.reinitialize", "init.mix")
# A member that has begun must still be of the same experiment; that corpora are the same is checked by their content.
FIXED_SECTIONS = ("model", "mup", "optimizer", "schedule", "data", "init", "run.seed", "run.steps", "evaluation.slices")
MOVABLE_KEYS = ("data.corpora", "data.ahead", "data.workers", "init.from", "init.mix")


@dataclass(frozen=True)
class Member:
    """One training of a study, for one seed."""

    name: str
    stage: str
    """The stage of an arm, or the point of a grid."""
    seed: int
    config_path: str
    overrides: tuple[str, ...]
    config: Config
    before: Member | None
    """The member whose weights it begins with."""
    script: str
    """The job script that trains it on Slurm."""
    slurm: tuple[str, ...]
    """Options of `sbatch` for its job."""
    beside: tuple[Member, ...] = ()
    """Others of whose weights it takes a part."""

    @property
    def needs(self) -> list[Member]:
        """Those that must have finished before it begins."""
        return [*([self.before] if self.before else []), *self.beside]

    @property
    def directory(self) -> Path:
        return Path(self.config.run.dir)

    @property
    def arguments(self) -> list[str]:
        """What `upscale train` is given."""
        return ["--config", self.config_path, *self.overrides]

    def training(self) -> dict[str, float | None]:
        """How well and how long it trained: a first stage that learned nothing has nothing to hand on; null for what is
        not finite."""
        run = self.run
        return {
            "training_bits_per_token_at_the_end": run.final_loss if math.isfinite(run.final_loss) else None,
            "step_seconds": run.seconds if math.isfinite(run.seconds) else None,
        }

    @property
    def run(self) -> Run:
        """What its run directory holds; raises ValueError where that cannot be read or has no logged step."""
        return read_runs([self.directory])[0]

    @cached_property
    def instances(self) -> int:
        """Rows it trains on."""
        return schedule.planned_end(self.config.schedule, self.config.data.lanes, self.config.run.steps)[1]

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
        minutes = self.config.run.minutes
        over = minutes is not None and counters.get("seconds", 0.0) >= 60 * minutes
        return (over or counters.get("instances", 0) >= self.instances) and not counters.get("evaluation_owed")


def as_overrides(settings: dict) -> list[str]:
    """`section.key=value` words; JSON is YAML, and quotes are left out where the text needs none."""
    plain = {key: isinstance(value, str) and reads_as_itself(value) for key, value in settings.items()}
    return [
        f"{key}={value if plain[key] else json.dumps(value, default=str, ensure_ascii=False)}"
        for key, value in settings.items()
    ]


def problems_of(error: UserError) -> list[str]:
    """The problems that an error names, one by one."""
    return error.problems if isinstance(error, config_files.ConfigError) else [str(error)]


def problems_of_settings(places: Iterable[tuple[str, Iterable[str]]]) -> Iterator[str]:
    """Keys that the study itself sets, among those that are set in each place of its file."""
    for place, keys in places:
        for key in keys:
            if any(own == key or own.startswith(f"{key}.") for own in OWN_KEYS):
                yield f"{place}: {key} is set by the study itself, for every member; leave it out"


def problems_of_files(config: Config, metrics: Sequence[Metric] = ()) -> Iterator[str]:
    """What a config does not show: missing corpora, sources that cannot write, texts that are compared but not
    measured."""
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


def misfits(source: Member, config: Config) -> list[str]:
    """Why a training with this config cannot begin with the weights of `source`, if anything."""
    found = [text.strip() for text in warm_start.mismatches(source.config, config)]
    asleep = warm_start.sleepers(source.config, source.instances, config)
    return [*found, asleep] if asleep else found


def changes(member: Member, growing: bool) -> Iterator[str]:
    """A member that has begun with other settings: its results would be of neither. One that is `growing` may be given
    more rows than it had, unless its rate was on the way to the end of its schedule."""
    saved = member.directory / layout.CONFIG
    if not saved.is_file() or not member.seen():
        return
    old = config_files.as_tree(run_directory.read_config(member.directory).resolved())
    different = run_directory.changes(old, config_files.as_tree(member.config))
    if growing and not member.config.schedule.decay and member.config.schedule.instances > old["schedule"]["instances"]:
        different.pop("schedule.instances", None)
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
