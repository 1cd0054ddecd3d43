"""Weights to begin with that another run has trained: from its checkpoints, or from an exported file.

Only weights are taken: moments, lanes and counters start anew. Whether the weights fit is decided from the two configs,
before a model is built. What is made of them first is in transplant.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open

from upscale import engines, schedule
from upscale.checkpoint import export, layout, manifest, run_directory, transplant
from upscale.checkpoint.reader import Reader
from upscale.config import Config, InitConfig
from upscale.config.finetuning import Part
from upscale.distributed.world import World
from upscale.engines import Engine, Fragment
from upscale.errors import UserError
from upscale.model import blocks
from upscale.model.parametrization import part_of

# What the weights mean depends on these; a difference is allowed when the parts it touches are reinitialized.
MUST_MATCH = {
    "model.block": None,
    "model.width": None,
    "model.depth": None,
    "model.plain_blocks": None,
    "model.heads": {"attention"},
    "model.qk_norm": {"attention"},
    "model.vocabulary": {"embeddings", "head"},
    "model.context": {"embeddings"},
    "mup.enabled": {"head"},
    "mup.base_width": {"head"},
}


class Initialization:
    """What `init.from` names, checked against the config that wants it.

    Raises UserError when it is no run and no exported file, when its model is another one, when it has no checkpoint
    (a run that has just begun), or when the schedule would put blocks to sleep that it has trained. `others` are the
    same for each part that `init.mix` takes from elsewhere.
    """

    def __init__(self, config: Config):
        assert config.init.from_ is not None
        self.config = config
        self.settings, self.path = config.init, Path(config.init.from_)
        self.is_file = self.path.is_file()
        if self.is_file:
            self.metadata = _metadata(self.path)
            try:
                self.source = export.config_of(self.path, self.metadata)
            except UserError as error:
                raise UserError(f"init.from: {error}") from None
            if config.init.step not in ("newest", int(self.metadata["step"])):
                raise UserError(
                    f"init.step = {config.init.step}, but the file {self.path} holds step {self.metadata['step']}. "
                    "Leave init.step out, or give a run directory."
                )
        else:
            self._check_directory(Path(config.run.dir))
            self.source = run_directory.read_config(self.path).resolved()
        if problems := mismatches(self.source, config):
            raise UserError(f"the weights of init.from = {self.path} do not fit this config:\n" + "\n".join(problems))
        self.others: dict[str, Initialization] = {}
        for part, alone in mixed(config).items():
            try:
                self.others[part] = Initialization(alone)
            except UserError as error:
                raise UserError(f"init.mix.{part}: {error}") from None

    def _check_directory(self, own: Path) -> None:
        if not self.path.is_dir():
            raise UserError(
                f"init.from: there is no {self.path}. Give a run directory, or a file that `upscale export` wrote."
            )
        if own.resolve() == self.path.resolve():
            raise UserError(
                f"init.from: {self.path} is this run's own directory. To continue that run, leave init.from out; to "
                "start a new one from its weights, give another run.name or run.dir."
            )
        run_directory.read_config(self.path)
        found = manifest.steps(self.path / layout.CHECKPOINTS)
        if not found:
            raise UserError(
                f"init.from: {self.path} has no checkpoint yet. If it is still training, wait for its first one "
                "(checkpoint.every says when), or give another run."
            )
        if self.settings.step != "newest" and self.settings.step not in found:
            raise UserError(
                f"init.from: {self.path} has no step {self.settings.step}; it has {', '.join(map(str, found))}. "
                "Only milestones are kept for ever: a run that goes on removes the others."
            )

    def load(self, config: Config, engine: Engine, world: World) -> list[str]:
        """Fill the engine's weights, the reinitialized parts with random ones; returns what the user should be told."""
        parts: dict[str, list[Fragment]] = {}
        for fragment in engine.fragments():
            parts.setdefault(part_of(fragment.name, config.model.block), []).append(fragment)
        fresh = [fragment for part in self.settings.reinitialize for fragment in parts.pop(part, [])]
        notes = []
        for part, other in self.others.items():
            notes += [f"{part}: {note}" for note in other._take(parts.pop(part, []), world)]
        notes += self._take([fragment for fragments in parts.values() for fragment in fragments], world)
        engines.initialize(config, fresh)
        engine.loaded(None)
        if self.settings.reinitialize:
            notes[-1] += f"; fresh: {', '.join(self.settings.reinitialize)}"
        return notes

    def _take(self, chosen: list[Fragment], world: World) -> list[str]:
        """Fill these fragments; returns what the user should be told, the source last."""
        change = transplant.Change(self.source, self.config)
        if self.is_file:
            place, instances = f"{self.path} (step {self.metadata['step']})", int(self.metadata["instances"])
            self._check_awake(instances)
            change.fill(chosen, lambda fragments: _load_file(self.path, fragments))
            notes: list[str] = []
        else:
            place, instances, notes = self._load_checkpoint(change, chosen, world)
        return [*notes, f"weights taken from {place}, {instances:,} instances{change.told}"]

    def _load_checkpoint(
        self, change: transplant.Change, chosen: list[Fragment], world: World
    ) -> tuple[str, int, list[str]]:
        folder, notes = self.path / layout.CHECKPOINTS, []
        try:
            if self.settings.step == "newest":
                found = manifest.newest_valid(folder, world, lambda text: notes.append(f"WARNING: init.from: {text}"))
                if not found:
                    raise UserError(f"init.from: {self.path} has no valid checkpoint:\n" + "\n".join(notes))
            else:
                path = manifest.step_folder(folder, self.settings.step)
                found = path, manifest.verify(path, world)
            counters = found[1]["counters"]
            self._check_awake(counters["instances"])
            reader = Reader(*found)
            change.fill(chosen, lambda fragments: reader.load(fragments, ("weight",)))
        except manifest.InvalidCheckpoint as error:
            raise UserError(f"init.from: {error}") from None
        planned = self.source.schedule.instances
        if counters["instances"] < planned and self.settings.step == "newest":
            notes.append(
                f"WARNING: {self.path} has not finished, or is still training: its newest valid checkpoint has seen "
                f"{counters['instances']:,} of {planned:,} instances. Give init.step={counters['step']} to take the "
                "same weights again later."
            )
        return str(found[0]), counters["instances"], notes

    def _check_awake(self, instances: int) -> None:
        """A trained block that slept at first would be left out of the model, and come back long after."""
        if problem := sleepers(self.source, instances, self.config):
            raise UserError(f"{self.path}: {problem}")


def wanted(config: Config) -> Initialization | None:
    """What a resolved config's new run begins with; None for random weights and for a run that goes on by itself."""
    begun = manifest.steps(Path(config.run.dir) / layout.CHECKPOINTS)
    return None if config.init.from_ is None or begun else Initialization(config)


def sleepers(source: Config, instances: int, config: Config) -> str | None:
    """What is wrong if a run begins with fewer blocks than a source has trained in so many instances."""
    trained = schedule.active_blocks(instances, source.schedule, source.model)
    awake = schedule.active_blocks(0, config.schedule, config.model)
    if awake >= trained:
        return None
    return (
        f"schedule.wake_every = {config.schedule.wake_every} lets only {awake} blocks begin, but {trained} were "
        "trained. Set schedule.wake_every=0, so that all are awake from the start."
    )


def mismatches(source: Config, config: Config) -> list[str]:
    """One line for each key by which the source's weights do not fit, with what would make them fit."""
    found: list[str] = []
    init, learned = config.init, blocks.KINDS[config.model.block].learned_positions
    rules = {"embeddings": init.rows.embeddings, "head": init.rows.head}
    for key, parts in MUST_MATCH.items():
        there, here = _setting(source, key), _setting(config, key)
        settled: set[str] = {*init.reinitialize, *init.mix}
        if key == "model.vocabulary":
            settled |= {part for part, rule in rules.items() if rule != "carried"}
        if key == "model.context" and (not learned or (init.rows.positions == "first" and there >= here)):
            settled.add("embeddings")
        if there == here or (parts and parts <= settled):
            continue
        ways = f"set {key}={str(there).lower()}"
        if parts:
            ways += f", or init.reinitialize=[{', '.join(sorted(parts))}]"
        if key == "model.vocabulary":
            ways += ", or init.rows={embeddings: matched, head: matched}"
        if key == "model.context" and there > here:
            ways += ", or init.rows.positions=first"
        found.append(f"  {key}: there {there}, here {here}: {ways}")
    return found


def mixed(config: Config) -> dict[str, Config]:
    """For each part of `init.mix`, the config of a run that takes this part alone from its run or file."""
    found: dict[str, Config] = {}
    for part, path in config.init.mix.items():
        others = [other for other in get_args(Part) if other != part]
        own = InitConfig(from_=path, reinitialize=others, rows=config.init.rows, control=config.init.control)
        found[part] = config.model_copy(update={"init": own})
    return found


def _setting(config: Config, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt", backend="pread") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"init.from: {path} is not a safetensors file ({error}). Make one with `upscale export`."
        ) from None
    if metadata.get("format") != export.FORMAT:
        raise UserError(
            f"init.from: {path} was not written by `upscale export`: its metadata has no format {export.FORMAT}. Give "
            "such a file, or a run directory."
        )
    return metadata


@torch.no_grad()
def _load_file(path: Path, fragments: Iterable[Fragment]) -> None:
    """Each fragment's range of its parameter; one whole parameter at a time is in memory."""
    try:
        with safe_open(path, framework="pt", backend="pread") as file:
            for fragment in fragments:
                weight = fragment.tensors["weight"]
                weight.copy_(file.get_tensor(fragment.name).view(-1)[fragment.offset : fragment.offset + len(weight)])
    except (OSError, SafetensorError, RuntimeError) as error:  # a tensor that is not there, or of another size
        raise UserError(f"init.from: {path} cannot be read: {error}") from None
