"""The run directory: who may continue in it, and what its files are called."""

from __future__ import annotations

import errno
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from upscale.checkpoint import lock, manifest
from upscale.checkpoint.layout import CHECKPOINTS, CONFIG, METRICS, config_path
from upscale.config import AUTO, Config
from upscale.config import files as config_files
from upscale.errors import RunError, UserError

if TYPE_CHECKING:  # commands that only look at files start without torch
    from upscale.distributed.world import World

PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
"""Errors of a file system that may work again when it has room or its server answers."""

# What a checkpoint's weights and lanes depend on. Everything else may change from one start to the next; that corpora
# are still the same is checked by their content (data.py), since folders move.
FIXED_KEYS = {
    "run": ("seed", "seeds"),
    "model": ("block", "width", "depth", "heads", "context", "vocabulary", "plain_blocks", "group_blocks", "qk_norm"),
    "mup": ("base_width", "enabled"),
    "optimizer": ("kind",),
    "data": ("kind", "lanes", "draw", "enrich", "buffer", "reset", "iterate", "control", "sources"),
    "init": ("from", "step", "reinitialize", "rows", "mix", "control"),
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
    directory = Path(config.run.dir)
    found: str | None = None
    if world.is_main and manifest.steps(directory / CHECKPOINTS) and (directory / CONFIG).is_file():
        try:
            found = config_files.load(directory / CONFIG).engine.precision
        except UserError:  # damaged: `open_directory` refuses it with the reason
            found = None
    kept = world.broadcast_object(found)
    return None if kept == AUTO else kept


def open_directory(config: Config, world: World) -> tuple[Path, lock.Lock | None, list[str]]:
    """Make or enter the run directory and write config.yaml; returns it, rank 0's lock, and notes on what has changed.

    Raises, on every rank, UserError when it holds another run, is in use, may not be continued, or cannot be written,
    and RunError when it cannot be written now, as on a full disk: then the same start may work later.
    """
    entrance = Entrance(config) if world.is_main else None
    # One exchange a look: the others must not take a first rank that waits for one that hangs.
    while (outcome := world.broadcast_object(entrance.step() if entrance else None)) is None:
        pass
    problem, notes = outcome
    if problem:
        raise problem
    return Path(config.run.dir), entrance.lock if entrance else None, notes


class Entrance:
    """Rank 0's way into a run directory: call `step` until it returns what to raise, if anything, and the notes."""

    def __init__(self, config: Config):
        self.config, self.directory = config, Path(config.run.dir)
        self.candidate: lock.Candidate | None = None
        self.lock: lock.Lock | None = None
        self.told = ""

    def step(self) -> tuple[UserError | RunError | None, list[str]] | None:
        problem: UserError | RunError
        try:
            return self._step()
        except UserError as error:
            problem = error
        except OSError as error:
            message = f"run directory {self.directory} cannot be used"
            if error.errno in PASSING:
                problem = RunError(f"{message} now: {error}. Start again when it can, or with another run.dir=FOLDER.")
            else:
                problem = UserError(f"{message}: {error}. Choose another with run.dir=FOLDER.")
        if self.lock:
            self.lock.release()
        return problem, []

    def _step(self) -> tuple[None, list[str]] | None:
        if self.candidate is None:
            _changes_since(self.directory, self.config)  # a start that is refused leaves no trace
            self.candidate = lock.Candidate(self.directory)
        found = self.candidate.look()
        if isinstance(found, str):
            if found != self.told:
                print(f"run directory {self.directory}: waiting for {found}", file=sys.stderr, flush=True)
            self.told = found
            time.sleep(lock.LOOK_SECONDS)
            return None
        self.lock = found
        return None, _enter(self.directory, self.config)


def _changes_since(directory: Path, config: Config) -> list[str]:
    """What has changed since the last start; raises UserError for another run, or where `run.resume` forbids it."""
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
    return notes


def _enter(directory: Path, config: Config) -> list[str]:
    notes = _changes_since(directory, config)
    (directory / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    for unfinished in [*directory.glob(".*.tmp"), *directory.glob("samples/.*.tmp")]:  # of a run that was killed
        unfinished.unlink()
    config_files.write(config, directory / CONFIG)
    return notes
