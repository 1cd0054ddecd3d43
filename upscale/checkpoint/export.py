"""Weights alone: one safetensors file with config and muP multiplier in its metadata, and back to a module."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from upscale.checkpoint import layout, manifest
from upscale.checkpoint.reader import Reader, whole_parameters
from upscale.config import Config
from upscale.config import files as config_files
from upscale.distributed.world import World
from upscale.errors import UserError
from upscale.model import parametrization
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
        model = materialize(parametrization.build(config, "meta"), world.device)
        Reader(*found).load(whole_parameters(model), ("weight",))
    except manifest.InvalidCheckpoint as error:
        raise UserError(f"{error}. Steps in {folder}: {manifest.steps(folder) or 'none'}") from None
    return model.eval(), found[1]["counters"]


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


def load(path: str | Path, device: torch.device | str = "cpu") -> Transformer:
    """The model of an exported file, in eval mode on one device, without DeepSpeed or a process group.

    `model(tokens)` with tokens (rows, positions) gives logits (rows, positions, vocabulary). Blocks that had not woken
    have a gate of zero and change nothing. Raises UserError for a file that `export` did not write.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise UserError(f"{path} was not written by `upscale export`: its metadata has no format {FORMAT}")
            config = Config.model_validate(json.loads(metadata["config"]))
            with torch.device("meta"):
                model = Transformer(config.model, float(metadata["output_multiplier"]), config.engine.in_bfloat16)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            model.load_state_dict(tensors, assign=True)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot load {path}: {error}") from None
    expected = parametrization.output_multiplier(config.model, config.mup)
    if model.output_multiplier != expected:
        raise UserError(f"{path}: output multiplier {model.output_multiplier} does not fit its config ({expected})")
    return model.to(device).eval()
