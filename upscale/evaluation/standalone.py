"""Measuring a saved run outside training: one process, or as many ranks as a launcher starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from upscale import planning, schedule
from upscale.checkpoint.export import load_model
from upscale.checkpoint.layout import EVALUATIONS
from upscale.config import Config
from upscale.distributed.world import World
from upscale.evaluation import suite
from upscale.evaluation.compression import Progress
from upscale.evaluation.dataset import Dataset
from upscale.evaluation.record import EvaluationRecord

MICRO_BATCH = 64


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
        batch_rows=int(world.all_reduce_min(planning.inference_batch(config, world.device, MICRO_BATCH))),
        progress=progress,
    )
    place = {"step": counters["step"], "instances": counters["instances"]}
    records = [EvaluationRecord(**place, **record).as_object() for record in records]
    if world.is_main:
        with open(run / EVALUATIONS, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
    return records
