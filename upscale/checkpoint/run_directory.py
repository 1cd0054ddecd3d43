"""The run directory: who may continue in it, and what its files are called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from upscale.checkpoint import manifest
from upscale.checkpoint.layout import CHECKPOINTS, CONFIG, METRICS, config_path
from upscale.config import AUTO, Config
from upscale.config import files as config_files
from upscale.errors import UserError

if TYPE_CHECKING:  # commands that only look at files start without torch
    from upscale.distributed.world import World

# What a checkpoint's weights and lanes depend on. Everything else may change from one start to the next; that corpora
# are still the same is checked by their content (data.py), since folders move.
FIXED_KEYS = {
    "run": ("seed",),
    "model": ("block", "width", "depth", "heads", "context", "vocabulary", "plain_blocks", "group_blocks", "qk_norm"),
    "mup": ("base_width", "enabled"),
    "optimizer": ("kind",),
    "data": ("kind", "lanes", "draw", "enrich", "buffer", "reset", "iterate", "sources"),
    "init": ("from", "step", "reinitialize"),
}


def changes(old: dict, new: dict, prefix: str = "") -> dict[str, tuple[object, object]]:
    """Keys whose values differ between two trees, as section.key -> (old, new)."""
    found = {}
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found.update(changes(before, after, f"{prefix}{key}."))
        elif before != after:
            found[prefix + key] = (before, after)
    return found


def is_fixed(key: str) -> bool:
    section, _, rest = key.partition(".")
    return rest.split(".")[0] in FIXED_KEYS.get(section, ())


def read_config(directory: Path) -> Config:
    """The resolved config of a run; raises UserError when the folder is not one."""
    return config_files.load(config_path(directory))


def kept_precision(config: Config, world: World) -> str | None:
    """The `engine.precision` of the run that a resolved config continues; None, on every rank, for a new run."""
    directory, found = Path(config.run.dir), None
    if world.is_main and manifest.steps(directory / CHECKPOINTS) and (directory / CONFIG).is_file():
        try:
            found = config_files.load(directory / CONFIG).engine.precision
        except UserError:  # damaged: `open_directory` refuses it with the reason
            found = None
    kept = world.broadcast_object(found)
    return None if kept == AUTO else kept


def open_directory(config: Config, world: World) -> tuple[Path, list[str]]:
    """Make or enter the run directory and write config.yaml; returns it with notes on what has changed.

    Raises UserError, on every rank, when it holds another run, may not be continued, or cannot be written.
    """
    directory = Path(config.run.dir)
    outcome: tuple[str | None, list[str]] = (None, [])
    if world.is_main:
        try:
            outcome = (None, _enter(directory, config))
        except UserError as error:
            outcome = (str(error), [])
        except OSError as error:
            outcome = (f"run directory {directory} cannot be used: {error}. Choose another with run.dir=FOLDER.", [])
    problem, notes = world.broadcast_object(outcome)
    if problem:
        raise UserError(problem)
    return directory, notes


def _enter(directory: Path, config: Config) -> list[str]:
    saved = directory / CONFIG
    has_steps = bool(manifest.steps(directory / CHECKPOINTS))
    if config.run.resume == "must" and not has_steps:
        raise UserError(f"run.resume=must, but {directory} has no checkpoint. Use run.resume=auto to start a new run.")
    if config.run.resume == "never" and (has_steps or (directory / METRICS).exists()):
        raise UserError(
            f"run.resume=never, but {directory} already holds a run. Choose another run.name or run.dir, remove the "
            "folder, or use run.resume=auto to continue it."
        )
    notes = []
    if saved.is_file() and has_steps:
        try:  # as a config, so that keys which did not exist yet have their defaults
            old = config_files.as_tree(config_files.load(saved))
        except UserError as error:
            raise UserError(f"{saved} is damaged; restore it or choose another run.dir: {error}") from None
        different = changes(old, config_files.as_tree(config))
        fixed = [f"  {key}: was {old!r}, now {new!r}" for key, (old, new) in different.items() if is_fixed(key)]
        if fixed:
            raise UserError(
                f"{directory} holds a run of another config, whose checkpoints do not fit:\n" + "\n".join(fixed) + "\n"
                "Choose another run.name or run.dir, or set these keys back."
            )
        notes = [f"changed since the last start: {key}: {old!r} -> {new!r}" for key, (old, new) in different.items()]
    (directory / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    for unfinished in [*directory.glob(".*.tmp"), *directory.glob("samples/.*.tmp")]:  # of a run that was killed
        unfinished.unlink()
    config_files.write(config, saved)
    return notes
