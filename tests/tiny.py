"""The small config that multi-rank tests train: three wake-up groups, a batch of 12 rows in 12 lanes."""

from __future__ import annotations

from upscale.config import Config
from upscale.config import files as config_files

TINY = """
run.name=tiny model.width=32 model.depth=6 model.heads=2 model.context=16 model.dropout=0 model.plain_blocks=2
model.group_blocks=2 mup.base_width=64 optimizer.learning_rate=1e-2 optimizer.weight_decay=0.1 schedule.warmup=24
schedule.wake_every=48 schedule.halve_every=100 schedule.instances=144 schedule.batch.start=12 schedule.batch.end=12
schedule.batch.from=0 schedule.batch.to=0 data.lanes=12 engine.precision=fp32 engine.micro_batch=2
tracking.wandb=disabled tracking.log_every=1 evaluation.every=0 checkpoint.milestones=0 checkpoint.every=0
""".split()


def overrides(**changes: object) -> list[str]:
    """`section__key=value` keywords on top of TINY."""
    return [*TINY, *(f"{key.replace('__', '.')}={value}" for key, value in changes.items())]


def config(**changes: object) -> Config:
    return config_files.load(None, overrides(**changes)).resolved()
