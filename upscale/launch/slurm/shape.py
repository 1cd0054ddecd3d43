"""The overrides with which another config trains the model of a run, so that it fits the GPUs of this job."""

from __future__ import annotations

import dataclasses
import math
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from upscale.checkpoint import run_directory
from upscale.config import AUTO, Config
from upscale.config import files as config_files
from upscale.errors import UserError

if TYPE_CHECKING:  # without GPUs there is nothing to plan, and this starts without torch
    from upscale.machine.gpus import Device

MODEL_SECTIONS = ("model", "mup")
WAYS = ("engine.name", "engine.zero_stage", "engine.shard_ranks", "model.checkpointing")
"""What decides how much a rank holds, and not what is trained."""
KEPT = ("engine.precision", "engine.reshard", "engine.overlap", "engine.bucket", "engine.prefetch_blocks")
ASK_SECONDS = 60
UTILIZATION = 0.4
NETWORK_BANDWIDTH = 50e9
"""Bytes per second and GPU: assumed, as by `upscale plan`; it only ranks the ways that fit."""


def model_of(run: Path) -> list[str]:
    """`section.key=value` for each key that a checkpoint's weights depend on."""
    tree = config_files.as_tree(run_directory.read_config(run).resolved())
    fixed = run_directory.FIXED_KEYS
    return [f"{section}.{key}={tree[section][key]}" for section in MODEL_SECTIONS for key in fixed[section]]


def shape_of(
    run: Path, nodes: int, ranks_per_node: int, config_file: str | None = None, given: list[str] | None = None
) -> list[str]:
    """The run's model, and how to compute it on so many nodes and ranks: what the plan says is fastest there.

    On ranks without GPUs it is computed as in the run. Keys in `given`, the user's overrides, are left to the user.
    Raises UserError when nothing fits, with the number of nodes on which something does.
    """
    given = given or []
    named = {word.split("=", 1)[0] for word in given}
    model, tree = model_of(run), config_files.as_tree(run_directory.read_config(run))
    kept = [f"{key}={_value(tree, key)}" for key in KEPT if key not in named]
    device = this_device()
    if device is None or named & set(WAYS):
        return [*model, *kept, *(f"{key}={_value(tree, key)}" for key in WAYS if key not in named)]
    config = config_files.load(config_file, [*model, *kept, *given]).resolved()
    return [*model, *kept, *_planned(config, device, nodes, ranks_per_node)]


def _value(tree: dict, key: str) -> object:
    section, name = key.split(".")
    value = tree[section][name]
    return str(value).lower() if isinstance(value, bool) else value


def _planned(config: Config, device: Device, nodes: int, ranks_per_node: int) -> list[str]:
    from upscale.planning.communication import Cluster
    from upscale.planning.estimate import alternatives

    if config.engine.precision == AUTO:
        config = config.model_copy(update={"engine": config.engine.model_copy(update={"precision": "bf16"})})
    more = nodes
    while more == nodes or more * ranks_per_node <= config.data.lanes:
        cluster = Cluster(more, ranks_per_node, device, NETWORK_BANDWIDTH)
        best = alternatives(config, cluster, UTILIZATION)[0]
        if best.fits and more == nodes:
            tree = config_files.as_tree(best.config)
            return [f"{key}={_value(tree, key)}" for key in WAYS]
        if best.fits:
            raise UserError(_too_large(config, device, nodes, ranks_per_node) + f" --nodes={more} is enough.")
        more *= 2
    raise UserError(_too_large(config, device, nodes, ranks_per_node) + " Take GPUs with more memory.")


def _too_large(config: Config, device: Device, nodes: int, ranks_per_node: int) -> str:
    return (
        f"a model of width {config.model.width} with {config.model.depth} blocks fits {nodes} x {ranks_per_node} "
        f"GPUs of {device.memory_bytes / 1e9:.0f} GB under no engine, stage or checkpointing (`upscale plan`)."
    )


def this_device() -> Device | None:
    """The GPUs of this node by their driver, the one with least memory; None without any."""
    if not shutil.which("nvidia-smi"):
        return None
    words = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=ASK_SECONDS)
        found = [line.rsplit(",", 1) for line in done.stdout.splitlines() if "," in line]
        if done.returncode or not found:
            return None
        name, mebibytes = min(((name.strip(), float(memory)) for name, memory in found), key=lambda pair: pair[1])
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return None
    from upscale.machine.gpus import CUDA_NAMES, DEVICES

    known = next((key for part, key in CUDA_NAMES.items() if part in name), "h100")
    return dataclasses.replace(DEVICES[known], memory_bytes=math.floor(mebibytes) * 2.0**20)
