"""Weights alone: one safetensors file with config and muP multiplier in its metadata, and back to a module."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from upscale.checkpoint import layout, manifest, run_directory
from upscale.checkpoint.reader import Reader, whole_parameters
from upscale.config import Config
from upscale.config import files as config_files
from upscale.config.schema import problems_between_sections
from upscale.distributed.world import World
from upscale.errors import UserError
from upscale.files import parse_json
from upscale.model import costs, parametrization
from upscale.model.transformer import Transformer
from upscale.model.weights import materialize

FORMAT = "upscale-weights-1"


def load_model(run: Path, config: Config, step: int | None, world: World) -> tuple[Transformer, dict]:
    """A run's model in eval mode with the weights of a step (None: the newest valid), and that step's counters.

    Raises UserError when the step is not there or not valid.
    """
    folder = run / layout.CHECKPOINTS
    try:
        if step is None:
            found = manifest.newest_valid(folder, world)
        else:
            path = manifest.step_folder(folder, step)
            found = path, manifest.verify(path, world)
        if not found:
            raise UserError(f"{run} has no valid checkpoint yet; steps found: {manifest.steps(folder) or 'none'}")
        _check_size(*found, config)
        model = materialize(parametrization.build(config, "meta"), world.device)
        Reader(*found).load(whole_parameters(model), ("weight",))
    except manifest.InvalidCheckpoint as error:
        raise UserError(f"{error}. Steps in {folder}: {manifest.steps(folder) or 'none'}") from None
    return model.eval(), found[1]["counters"]


def _check_size(path: Path, content: dict, config: Config) -> None:
    """Before a model is made: a config beside other checkpoints may ask for any size."""
    held = sum(piece["length"] for pieces in content["pieces"].values() for piece in pieces)
    if held != costs.parameters(config.model):
        raise UserError(
            f"{path} holds {held:,} parameters, but the run's config has {costs.parameters(config.model):,}"
        )


def export(run: Path, config: Config, step: int | None, to: Path) -> dict:
    """Write the weights of a run's step (None: the newest valid) as float32; returns that step's counters.

    Raises UserError when there is no such step or the file cannot be written; the file appears whole or not at all.
    """
    model, counters = load_model(run, config, step, World.single())
    metadata = {
        "format": FORMAT,
        "config": json.dumps(config_files.as_tree(config)),
        "versions": json.dumps(config_files.versions()),
        "output_multiplier": repr(model.output_multiplier),
        "step": str(counters["step"]),
        "instances": str(counters["instances"]),
    }
    temporary = to.with_name(f".{to.name}.{os.getpid()}.tmp")
    try:
        save_file({name: parameter.detach() for name, parameter in model.named_parameters()}, temporary, metadata)
        os.replace(temporary, to)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {to}: {error}. Give a path in an existing, writable folder.") from None
    return counters


def load(path: str | Path, device: torch.device | str = "cpu", step: int | None = None) -> Transformer:
    """The model of a run directory or an exported file, in eval mode on one device, without DeepSpeed or a group.

    `model(tokens)` with tokens (rows, positions) gives logits (rows, positions, vocabulary). Blocks that had not woken
    have a gate of zero and change nothing. Of a run `step` chooses a checkpoint (None: the newest valid one). Raises
    UserError for a file that `export` did not write, before a model of another size than the file's is made, and for a
    folder that is no run, or has no such step.
    """
    if Path(path).is_dir():
        config = run_directory.read_config(Path(path)).resolved()
        return load_model(Path(path), config, step, World.single(device))[0]
    if step is not None:
        raise UserError(f"step {step} of {path}: an exported file holds one step; give the run directory to choose")
    try:
        with safe_open(path, framework="pt", backend="pread") as file:
            names = list(file.keys())
            config = config_of(path, file.metadata())
            held, expected = _numbers(file, names), costs.parameters(config.model)
            if held != expected:
                raise UserError(f"{path} holds {held:,} numbers, but a model of its config has {expected:,}")
            multiplier = parametrization.output_multiplier(config.model, config.mup)
            if (found := float(file.metadata()["output_multiplier"])) != multiplier:
                raise UserError(f"{path}: output multiplier {found} does not fit its config ({multiplier})")
            with torch.device("meta"):
                model = Transformer(config.model, multiplier, config.engine.in_bfloat16)
            model.load_state_dict({name: file.get_tensor(name) for name in names}, assign=True)
    except (OSError, SafetensorError, LookupError, ValueError, RuntimeError) as error:  # another model's tensors, too
        raise UserError(f"cannot load {path}: {error}") from None
    return model.to(device).eval()


def _numbers(file: safe_open, names: list[str]) -> int:
    return sum(math.prod(file.get_slice(name).get_shape()) for name in names)


def config_of(path: str | Path, metadata: dict[str, str] | None) -> Config:
    """The config in an exported file's metadata; raises UserError where there is none, or one that is none."""
    metadata = metadata or {}
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} was not written by `upscale export`: its metadata has no format {FORMAT}")
    try:
        int(metadata["step"]), int(metadata["instances"])
        config = Config.model_validate(parse_json(metadata["config"]))
        problems = problems_between_sections({name: getattr(config, name) for name in Config.model_fields})
        if problems:
            raise ValueError("; ".join(f"{key}: {message}" for key, message in problems))
        return config.resolved()
    except (LookupError, ValueError, ArithmeticError) as error:
        raise UserError(f"the config in {path} cannot be read: {error}") from None
