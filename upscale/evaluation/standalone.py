"""Measuring a saved run outside training: one process, or as many ranks as a launcher starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from upscale import planning, schedule
from upscale.checkpoint import manifest, run_directory
from upscale.checkpoint.reader import Reader, whole_parameters
from upscale.config import Config
from upscale.distributed.world import World
from upscale.errors import UserError
from upscale.evaluation import suite
from upscale.evaluation.compression import Progress
from upscale.evaluation.dataset import Dataset
from upscale.model import parametrization
from upscale.model.transformer import Transformer

MICRO_BATCH = 64


def load_model(run: Path, config: Config, step: int | None, world: World) -> tuple[Transformer, dict]:
    """A run's model in eval mode with the weights of a step (None: the newest valid), and that step's counters.

    Raises UserError when the step is not there or not valid.
    """
    folder = run / run_directory.CHECKPOINTS
    try:
        if step is None:
            found = manifest.newest_valid(folder, world)
        else:
            path = manifest.step_folder(folder, step)
            found = path, manifest.verify(path, world)
        if not found:
            raise UserError(f"{run} has no valid checkpoint yet; steps found: {manifest.steps(folder) or 'none'}")
        model = parametrization.build(config)
        Reader(*found).load(whole_parameters(model), ("weight",))
    except manifest.InvalidCheckpoint as error:
        raise UserError(f"{error}. Steps in {folder}: {manifest.steps(folder) or 'none'}") from None
    return model.to(world.device).eval(), found[1]["counters"]


@torch.no_grad()
def measure(
    run: Path,
    config: Config,
    datasets: Sequence[Dataset],
    *,
    step: int | None,
    slices: int,
    world: World,
    progress: Progress | None = None,
) -> list[dict]:
    """Records of every dataset for one checkpoint of a run; rank 0 also appends them to its evaluations.jsonl."""
    model, counters = load_model(run, config, step, world)
    active = schedule.active_blocks(counters["instances"], config.schedule, config.model)
    records = suite.evaluate(
        lambda tokens: model(tokens, active, last_only=True)[:, 0],
        datasets,
        slices=slices,
        context=config.model.context,
        world=world,
        batch_rows=int(world.minimum(planning.inference_batch(config, world.device, MICRO_BATCH))),
        progress=progress,
    )
    place = {"step": counters["step"], "instances": counters["instances"]}
    records = [{**place, **record} for record in records]
    if world.is_main:
        with open(run / "evaluations.jsonl", "a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
    return records
