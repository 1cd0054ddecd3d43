"""Measuring a saved run outside training: one process, or as many ranks as a launcher starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from upscale import planning, schedule
from upscale.checkpoint import layout, lock
from upscale.checkpoint.export import load_model
from upscale.checkpoint.layout import EVALUATIONS
from upscale.config import Config
from upscale.distributed.world import World
from upscale.evaluation import diagnostics, suite
from upscale.evaluation.compression import Progress
from upscale.evaluation.dataset import Dataset
from upscale.evaluation.record import DiagnosticsRecord, EvaluationRecord
from upscale.files import append_json_lines

MICRO_BATCH = 64
DIAGNOSTIC_ROWS = 16
"""Rows at once where logits of all positions are kept, in double precision."""


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
        with lock.alone(run, EVALUATIONS):  # its training rewrites the file when it starts and when it evaluates
            append_json_lines(run / EVALUATIONS, records)
    return records


@torch.no_grad()
def diagnose(run: Path, config: Config, datasets: Sequence[Dataset], *, step: int | None, world: World) -> dict:
    """What `diagnostics.diagnose` finds for one checkpoint of a run; rank 0 also appends it to its diagnostics.jsonl.

    Every rank computes the same: it takes seconds.
    """
    model, counters = load_model(run, config, step, world)
    active = schedule.active_blocks(counters["instances"], config.schedule, config.model)
    found = diagnostics.diagnose(
        lambda tokens: model(tokens, active),
        datasets,
        context=config.model.context,
        batch_rows=DIAGNOSTIC_ROWS,
        device=world.device,
    )
    record = DiagnosticsRecord(step=counters["step"], instances=counters["instances"], **found).as_object()
    if world.is_main:
        with lock.alone(run, layout.DIAGNOSTICS):
            append_json_lines(run / layout.DIAGNOSTICS, [record])
    return record
