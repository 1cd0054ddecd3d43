"""What the files of a run directory are called; read without torch, for commands that only look at files."""

from __future__ import annotations

from pathlib import Path

from upscale.errors import UserError
from upscale.files import read_yaml

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
EVALUATIONS = "evaluations.jsonl"
DIAGNOSTICS = "diagnostics.jsonl"


def config_path(directory: Path) -> Path:
    """The resolved config of a run; raises UserError when the folder is no run directory."""
    path = directory / CONFIG
    if not path.is_file():
        raise UserError(f"{directory} is not a run directory: it has no {CONFIG}. Give the folder that training wrote.")
    return path


def config_tree(directory: Path) -> dict:
    """The sections and keys of a run's resolved config as training wrote them, unchecked.

    Raises UserError when the folder is no run directory or the file is not YAML.
    """
    return read_yaml(config_path(directory), "config", "a config is a mapping of sections")
