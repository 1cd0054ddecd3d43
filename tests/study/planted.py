"""Grids whose run directories are written by hand, with evaluations and losses that follow what a test plants."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.study import tiny
from upscale import planning
from upscale.checkpoint import layout, manifest
from upscale.config import files as config_files
from upscale.files import read_json_lines
from upscale.study import grid, loading
from upscale.study.members import Member

ROOT = Path(__file__).parents[2]
SCALING = {
    "name": "scaling",
    "report": "scaling",
    "config": "{folder}/tiny.yaml",
    "seeds": [0, 1],
    "set": {
        "data.lanes": 4,
        "schedule": {"batch": {"start": 12, "end": 12, "from": 0, "to": 0}, "wake_every": 0, "instances": 1200},
        "evaluation": {"every": 120, "slices": 40, "tasks": ["toy", "bits"]},
    },
    "axes": {"width": {f"w{width}": {"set": {"model.width": width}} for width in (16, 32, 64, 128, 256)}},
    "next": {"set": {"model.width": 512}},
}
TRANSFER = {
    "name": "transfer",
    "report": "transfer",
    "config": "{folder}/tiny.yaml",
    "seeds": [0, 1],
    "set": {"schedule": {"batch": {"start": 12, "end": 12, "from": 0, "to": 0}, "wake_every": 0, "instances": 1200}},
    "axes": {
        "recipe": {"mup": {}, "standard": {"set": {"mup.enabled": False}}},
        "width": {f"w{width}": {"set": {"model.width": width}} for width in (16, 32, 64)},
        "rate": {f"r{power}": {"set": {"optimizer.learning_rate": 2.0**-power}} for power in range(6, 12)},
    },
}

Bits = Callable[[Member, str, float], list[float]]
"""(member, task, instances) -> bits per character of twenty groups of slices."""


def write(folder: Path, tree: dict, **changes: object) -> Path:
    """The grid's file, with `a__b=value` put in place, and its base config; returns its path."""
    tiny.write(folder)
    tree = copy.deepcopy(tree)
    for key, value in changes.items():
        *parents, leaf = key.split("__")
        place = tree
        for parent in parents:
            place = place[parent]
        place[leaf] = value
        if value is None:
            del place[leaf]
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False).replace("{folder}", str(folder)))
    return path


def planned(folder: Path, tree: dict, overrides: list[str] = (), **changes: object) -> grid.GridPlan:
    path = write(folder, tree, **changes)
    return grid.make(path, loading.load(path), list(overrides), runs=folder / "runs")


def parameters(member: Member) -> int:
    return planning.parameters(member.config.model)


def train(
    member: Member,
    bits: Bits | None = None,
    loss: Callable[[Member], float] = lambda member: 4.0,
    split: str = "generated",
) -> None:
    """Write what a finished training leaves: config, metrics, evaluations and the manifest of its last step."""
    directory, instances = member.directory, member.instances
    step = manifest.step_folder(directory / layout.CHECKPOINTS, 100)
    step.mkdir(parents=True)
    config_files.write(member.config, directory / layout.CONFIG)
    counters = {"step": 100, "instances": instances}
    manifest.write(
        step, {"step": 100, "counters": counters, "milestone": False, "files": {}, "pieces": {}, "lanes": {}}
    )
    metrics = [
        {
            "step": place,
            "instances": place * 12,
            "loss_bits_per_byte": loss(member),
            "step_seconds": 36.0,
            "world_size": 1,
        }
        for place in range(1, 101)
    ]
    _lines(directory / "metrics.jsonl", metrics)
    evaluations = []
    for seen in range(0, instances + 1, 120) if bits else ():
        for task in member.config.evaluation.tasks:
            groups = bits(member, task, seen)
            evaluations.append(
                {
                    "step": seen // 12,
                    "instances": seen,
                    "task": task,
                    "split": split,
                    "bits_per_character": sum(groups) / len(groups),
                    "standard_error": 0.01,
                    "group_bits_per_character": groups,
                    "markov_bits_per_character": 3.0,
                    "optimal_bits_per_character": 1.0,
                    "samples": 400,
                }
            )
    _lines(directory / "evaluations.jsonl", evaluations)


def owe(directory: Path) -> None:
    """What a request to stop in the last step leaves of a finished run: its last evaluation is owed, not recorded."""
    folder = directory / layout.CHECKPOINTS
    step = manifest.step_folder(folder, manifest.steps(folder)[-1])
    content = manifest.read(step)
    manifest.write(step, {**content, "counters": {**content["counters"], "evaluation_owed": True}})
    path, last = directory / layout.EVALUATIONS, content["counters"]["step"]
    _lines(path, [record for record in read_json_lines(path) if record["step"] != last])


def _lines(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
