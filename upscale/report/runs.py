"""Read run directories: config.yaml, metrics.jsonl and evaluations.jsonl, checked line by line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
import yaml

from upscale.checkpoint.layout import CONFIG, EVALUATIONS, METRICS
from upscale.files import parse_yaml, read_json_lines
from upscale.training.record import StepRecord, read_steps

TaskKey = tuple[str, str]
"""A task and its split: ("dyck", "validation")."""

UNKNOWN = "–"
"""Stands in tables where there is no number."""

_REQUIRED_EVALUATION = ("step", "instances", "bits_per_character")
_EVALUATION_NUMBERS = (
    *("step", "instances", "bits_per_character", "standard_error", "markov_bits_per_character", "markov_order"),
    *("markov_published_bits_per_character", "markov_published_order", "optimal_bits_per_character", "samples"),
)


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
    evaluations: list[dict[str, Any]]
    """One mapping for each task, split and step."""

    def setting(self, section: str, key: str) -> Any:
        """A value of the config, or None where the config does not say."""
        values = self.config.get(section)
        return values.get(key) if isinstance(values, dict) else None

    def column(self, field: str) -> numpy.ndarray:
        """One field or property of StepRecord over the logged steps, shape (steps,), NaN where it is not known.

        `FIELD.NAME` is what a field that holds several has under that name.
        """
        field, _, name = field.partition(".")
        values = [getattr(record, field) for record in self.metrics]
        return numpy.array([_number((value or {}).get(name) if name else value) for value in values], dtype=float)

    @cached_property
    def instances(self) -> numpy.ndarray:
        """Instances seen at each logged step, shape (steps,)."""
        return self.column("instances")

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
    def scored(self) -> dict[TaskKey, list[dict[str, Any]]]:
        """The evaluations that have a number, by task and split, instances rising."""
        by_task: dict[TaskKey, list[dict[str, Any]]] = {}
        for row in self.evaluations:
            if not math.isnan(_number(row.get("bits_per_character"))):
                by_task.setdefault(task_key(row), []).append(row)
        return {key: sorted(rows, key=lambda row: row["instances"]) for key, rows in by_task.items()}

    @cached_property
    def unscored(self) -> dict[str, str]:
        """Why a task has no number, for the tasks whose newest evaluation has none."""
        newest: dict[str, dict[str, Any]] = {}
        for row in sorted(self.evaluations, key=lambda row: row.get("step") or 0):
            newest[row["task"]] = row
        without = {task: row for task, row in newest.items() if math.isnan(value(row, "bits_per_character"))}
        return {task: str(row.get("skipped") or "the model's output was not finite") for task, row in without.items()}


def task_key(row: dict[str, Any]) -> TaskKey:
    """The task and the split of one line of evaluations.jsonl."""
    return str(row["task"]), str(row.get("split") or "")


def task_title(key: TaskKey) -> str:
    """The task as a reader meets it; that a task is generated goes without saying."""
    task, split = key
    return f"{task} ({split})" if split not in ("", "generated") else task


def count(number: float) -> str:
    """A whole number with commas; UNKNOWN for NaN."""
    return UNKNOWN if math.isnan(number) else f"{number:,.0f}"


def value(row: dict[str, Any], field: str) -> float:
    """A number of one line, NaN where it is null or absent."""
    return _number(row.get(field))


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read each run directory once, in the order given; ValueError says which one cannot be read and why."""
    if not paths:
        raise ValueError("no run was given; `upscale report RUN... --to DIR` takes at least one run directory")
    distinct: dict[Path, Path] = {}
    for path in paths:
        distinct.setdefault(path.resolve(), path)
    contents = [(path, *_read_config(path)) for path in distinct.values()]
    names = [_name(path, config) for path, config, _ in contents]
    runs = []
    for (path, config, text), name in zip(contents, names, strict=True):
        label = f"{name} ({path})" if names.count(name) > 1 else name
        runs.append(Run(label, path, config, text, _read_metrics(path), _read_evaluations(path)))
    return runs


def _number(given: Any) -> float:
    """A finite number as it is; NaN for null, for text and for an infinity, which no plot and no table can place."""
    try:
        return float(given) if isinstance(given, (int, float)) and math.isfinite(given) else math.nan
    except OverflowError:  # an integer of more than 308 digits
        return math.nan


def _name(path: Path, config: dict[str, Any]) -> str:
    section = config.get("run")
    name = section.get("name") if isinstance(section, dict) else None
    return str(name) if name else path.resolve().name


def _read_config(path: Path) -> tuple[dict[str, Any], str]:
    """The config as a mapping and as text; both empty where there is no config.yaml."""
    if not (path / METRICS).is_file() and not (path / CONFIG).is_file():
        what = "a directory without config.yaml and metrics.jsonl" if path.is_dir() else "no directory"
        raise ValueError(
            f"{path} is not a run directory: it is {what}; "
            "give the directory that `upscale train` wrote, such as runs/NAME"
        )
    file = path / CONFIG
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


def _read_metrics(path: Path) -> list[StepRecord]:
    file = path / METRICS
    if not (steps := read_steps(file)):
        raise ValueError(
            f"{path} has no metrics yet: {file} has no complete line; report it after its first logged step"
        )
    return steps


def _read_evaluations(path: Path) -> list[dict[str, Any]]:
    """The evaluations; of two of the same task, split and step the later line counts."""
    file = path / EVALUATIONS
    latest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for number, row in _read_lines(file):
        if not isinstance(row.get("task"), str):
            raise ValueError(f"{file}, line {number}: the field task is {row.get('task')!r}; it must be a string")
        required = () if row.get("skipped") else _REQUIRED_EVALUATION
        _check_numbers(file, number, row, required=required, numbers=_EVALUATION_NUMBERS)
        latest[(*task_key(row), row.get("step"))] = row
    return list(latest.values())


def _check_numbers(
    file: Path, number: int, row: dict[str, Any], *, required: Sequence[str], numbers: Sequence[str]
) -> None:
    """Numbers may be null (a loss that overflowed is) but not text; step and instances must be there and finite."""
    for field in required:
        if field not in row:
            raise ValueError(f"{file}, line {number}: the field {field} is missing")
    for field in numbers:
        given = row.get(field)
        if given is not None and (isinstance(given, bool) or not isinstance(given, (int, float))):
            raise ValueError(f"{file}, line {number}: the field {field} is {given!r}; it must be a number or null")
    for field in ("step", "instances"):
        if field in required and not math.isfinite(_number(row[field])):
            raise ValueError(f"{file}, line {number}: the field {field} is {row[field]!r}; it must be a finite number")


def _read_lines(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a jsonl file with their line numbers; a missing file has none.

    A run may be writing while we read, so a last line without its end is left out. Any other line that does not parse
    is damage, and hiding it would bend the curves.
    """
    if not file.is_file():
        return []
    try:
        return list(enumerate(read_json_lines(file), start=1))
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error}") from error
