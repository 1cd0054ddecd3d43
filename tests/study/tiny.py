"""A study of seconds: a source with a vocabulary and context of its own, then text whose body is frozen."""

from __future__ import annotations

import copy
from pathlib import Path

import yaml

from tests import tiny
from tests.corpora.small import corpus
from upscale.evaluation.tasks import TEXTS

FREEZE = ["embeddings", "attention", "ff", "norms", "gates"]
STUDY = {
    "name": "tiny",
    "baseline": "scratch",
    "compare": [{"stage": "text", "task": "wp"}],
    "set": {"data.lanes": 4, "schedule.batch": {"start": 12, "end": 12, "from": 0, "to": 0}, "schedule.wake_every": 0},
    "stages": {
        "first": {
            "config": "{folder}/tiny.yaml",
            "set": {
                "model": {"vocabulary": 300, "context": 24},
                "data.sources": [{"kind": "uniform"}],
                "schedule.instances": 2400,
            },
        },
        "text": {
            "config": "{folder}/tiny.yaml",
            "reinitialize": ["embeddings", "head"],
            "set": {
                "optimizer": {"freeze": FREEZE, "learning_rate": 3e-2},
                "data": {"kind": "corpus", "corpora": [{"path": "{folder}/corpora/wp"}]},
                "evaluation": {"every": 36, "slices": 20, "tasks": ["wp"], "data_dir": "{folder}/corpora"},
            },
        },
    },
    "arms": {
        "scratch": ["text"],
        "whole": ["first", "text"],
        "body": ["first", {"stage": "text", "reinitialize": ["embeddings", "head", "attention"]}],
    },
}


def tree(**changes: object) -> dict:
    """The study with `a__b=value` put in place; None removes a key."""
    found = copy.deepcopy(STUDY)
    for key, value in changes.items():
        *parents, leaf = key.split("__")
        place = found
        for parent in parents:
            place = place[parent]
        if value is None:
            del place[leaf]
        else:
            place[leaf] = value
    return found


def write(folder: Path, **changes: object) -> Path:
    """The study file with its base config and a corpus of real text; returns its path."""
    if not (folder / "corpora").exists():
        content = TEXTS["wp"].load().data.tobytes()[:6000]
        corpus(folder / "corpora/wp", content, {"train": 4500, "validation": 1000, "test": 500})
        config: dict = {}
        for override in tiny.overrides(run__name="base"):
            key, _, value = override.partition("=")
            section, name = key.split(".", 1)
            *parents, leaf = name.split(".")
            place = config.setdefault(section, {})
            for parent in parents:
                place = place.setdefault(parent, {})
            place[leaf] = yaml.safe_load(value)
        config["optimizer"]["learning_rate"] = 1e-2
        config["engine"] |= {"name": "fsdp", "micro_batch": 12}  # starts and trains sooner
        (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(tree(**changes), sort_keys=False).replace("{folder}", str(folder)))
    return path
