"""Read run directories: config.yaml, metrics.jsonl and evaluations.jsonl, checked line by line."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
import yaml

from upscale.checkpoint.layout import CONFIG, DIAGNOSTICS, EVALUATIONS, METRICS
from upscale.console.text import harmless
from upscale.evaluation.record import DiagnosticsRecord, EvaluationRecord, read_diagnostics, read_evaluations
from upscale.files import parse_yaml
from upscale.training.record import StepRecord, read_steps

TaskKey = tuple[str, str]
"""A task and its split: ("dyck", "validation")."""

UNKNOWN = "–"
"""Stands in tables where there is no number."""


@dataclass(frozen=True)
class Run:
    """What one run directory holds, in the order it was written."""

    name: str
    """`run.name` of the config (else the directory's name), with the path added where two runs share a name."""
    path: Path
    """The directory as the user gave it."""
    config: dict[str, Any]
    """The resolved config; empty without a config.yaml."""
    config_text: str
    """config.yaml as written."""
    metrics: list[StepRecord]
    """One record a logged step, steps strictly rising; never empty."""
    evaluations: list[EvaluationRecord]
    """One record for each task, split and step."""
    diagnostics: list[DiagnosticsRecord]
    """One record a step that was looked at, steps rising."""
    look: int
    """Which colour and dashes its lines have in every picture; runs that differ in their seed only share one."""

    def setting(self, section: str, key: str) -> Any:
        """A value of the config, or None where the config does not say."""
        values = self.config.get(section)
        return values.get(key) if isinstance(values, dict) else None

    def column(self, field: str) -> numpy.ndarray:
        """One field or property of StepRecord over the logged steps, shape (steps,), NaN where it is not known.

        `FIELD.NAME` is what a field that holds several has under that name.
        """
        return numpy.array([value(record, field) for record in self.metrics], dtype=float)

    @cached_property
    def instances(self) -> numpy.ndarray:
        """Instances seen at each logged step, shape (steps,)."""
        return self.column("instances")

    @property
    def last_steps(self) -> list[StepRecord]:
        """The last tenth of the logged steps, at least one."""
        return self.metrics[-max(1, len(self.metrics) // 10) :]

    @property
    def final_loss(self) -> float:
        """Bits per byte, the mean over `last_steps`; NaN where one of them is not finite."""
        return float(numpy.mean([value(record, "loss_bits_per_byte") for record in self.last_steps]))

    @cached_property
    def seconds(self) -> float:
        """Seconds spent in steps: each logged step's time counts for the steps since the logged step before it."""
        steps = self.column("step")
        return float(numpy.nansum(numpy.diff(steps, prepend=0.0) * self.column("step_seconds")))

    @cached_property
    def world_sizes(self) -> list[int]:
        """The numbers of ranks in the order they were used, one entry for each change."""
        sizes: list[int] = []
        for size in self.column("world_size"):
            if not math.isnan(size) and (not sizes or sizes[-1] != size):
                sizes.append(int(size))
        return sizes

    @cached_property
    def world_changes(self) -> list[int]:
        """The places in `metrics` of the first logged step with another number of ranks than the one before."""
        world = self.column("world_size")
        changed = (world[1:] != world[:-1]) & numpy.isfinite(world[1:] + world[:-1])
        return (numpy.flatnonzero(changed) + 1).tolist()

    @cached_property
    def scored(self) -> dict[TaskKey, list[EvaluationRecord]]:
        """The evaluations that have a number, by task and split, instances rising."""
        by_task: dict[TaskKey, list[EvaluationRecord]] = {}
        for record in sorted(self.evaluations, key=lambda record: record.instances):
            if not math.isnan(value(record, "bits_per_character")):
                by_task.setdefault(record.key, []).append(record)
        return by_task

    @cached_property
    def unscored(self) -> dict[str, str]:
        """Why a task has no number, for the tasks whose newest evaluation has none."""
        newest = {record.task: record for record in sorted(self.evaluations, key=lambda record: record.step)}
        without = [record for record in newest.values() if math.isnan(value(record, "bits_per_character"))]
        return {record.task: record.skipped or "the model's output was not finite" for record in without}


def task_title(key: TaskKey) -> str:
    """The task as a reader meets it; that a task is generated goes without saying."""
    task, split = key
    return f"{task} ({split})" if split not in ("", "generated") else task


def count(number: float) -> str:
    """A whole number with commas; UNKNOWN for NaN."""
    return UNKNOWN if math.isnan(number) else f"{number:,.0f}"


def value(record: EvaluationRecord | StepRecord, field: str) -> float:
    """A number of one record, NaN where it is null or not finite, which no plot and no table can place.

    `FIELD.NAME` is what a field that holds several has under that name.
    """
    field, _, name = field.partition(".")
    given = getattr(record, field)
    if name:
        given = (given or {}).get(name)
    try:
        return float(given) if given is not None and math.isfinite(given) else math.nan
    except OverflowError:  # an integer of more than 308 digits
        return math.nan


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """The run directories that are meant, each once: a folder without a run of its own, as a study's, stands for the
    run directories in it, in the order of their names; links in it are not followed.

    Raises ValueError for a path that is neither.
    """
    if not paths:
        raise ValueError("no run was given; give at least one run directory, or a folder of them such as a study's")
    distinct: dict[Path, Path] = {}
    for path in paths:
        inside = [path] if _is_run(path) or not path.is_dir() else sorted(path.iterdir())
        found = [one for one in inside if _is_run(one) and (one == path or not one.is_symlink())]
        if not found:
            what = "a directory without config.yaml and metrics.jsonl" if path.is_dir() else "no directory"
            raise ValueError(
                f"{path} is not a run directory: it is {what}; "
                "give the directory that `upscale train` wrote, such as runs/NAME, or a folder of such directories"
            )
        for one in found:
            distinct.setdefault(one.resolve(), one)
    return list(distinct.values())


def read_runs(paths: Sequence[Path], waiting: list[Path] | None = None) -> list[Run]:
    """The runs that `find_runs` finds, in its order; ValueError says which one cannot be read and why.

    A run that is named must have metrics, one that lies in a folder is left out until it has. With a list `waiting`,
    both are put there.
    """
    given = [path.resolve() for path in paths]
    contents = []
    for path in find_runs(paths):
        config, text = _read_config(path)
        steps = read_steps(_own(path, METRICS))
        if steps:
            contents.append((path, config, text, steps))
        elif waiting is not None:
            waiting.append(path)
        elif path.resolve() in given:
            raise ValueError(
                f"{path} has no metrics yet: {path / METRICS} has no complete line; "
                "report it after its first logged step"
            )
    if not contents and waiting is None:
        raise ValueError(
            f"no run in {', '.join(map(str, paths))} has metrics yet; report them after a first logged step"
        )
    names = [_name(path, config) for path, config, _, _ in contents]
    looks: dict[str, int] = {}
    runs = []
    for (path, config, text, steps), name in zip(contents, names, strict=True):
        label = f"{name} ({path})" if names.count(name) > 1 else name
        evaluations, diagnostics = read_evaluations(_own(path, EVALUATIONS)), read_diagnostics(_own(path, DIAGNOSTICS))
        look = looks.setdefault(_without_seed(config) if config else str(path), len(looks))
        runs.append(Run(label, path, config, text, steps, evaluations, diagnostics, look))
    return runs


_OWN_KEYS = (("run", "name"), ("run", "dir"), ("run", "seed"), ("init", "from"))


def _without_seed(config: dict[str, Any]) -> str:
    """What runs that repeat each other with other seeds have in common; a study's runs end in their seed."""
    kept = {
        section: {key: given for key, given in values.items() if (section, key) not in _OWN_KEYS}
        for section, values in config.items()
        if isinstance(values, dict)
    }
    init = config.get("init")
    origin = init.get("from") if isinstance(init, dict) else None
    return repr((kept, re.sub(r"-\d+$", "", str(origin))))


def _is_run(path: Path) -> bool:
    return (path / METRICS).is_file() or (path / CONFIG).is_file()


def _own(run: Path, name: str) -> Path:
    """A run's file; ValueError where it is a link to one elsewhere, whose content is nobody's to show."""
    path = run / name
    if path.resolve().parent != run.resolve():
        raise ValueError(f"{path} is a link that leads out of the run: put the file itself there, or remove the link")
    return path


def _name(path: Path, config: dict[str, Any]) -> str:
    section = config.get("run")
    name = section.get("name") if isinstance(section, dict) else None
    return harmless(str(name)) if name else path.resolve().name


def _read_config(path: Path) -> tuple[dict[str, Any], str]:
    """The config as a mapping and as text; both empty where there is no config.yaml."""
    file = _own(path, CONFIG)
    if not file.is_file():
        return {}, ""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
        config = parse_yaml(text)
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    if config is None:
        return {}, text
    if not isinstance(config, dict):
        raise ValueError(
            f"{file} holds a {type(config).__name__}; it must be a mapping of sections such as run and model"
        )
    return config, text
