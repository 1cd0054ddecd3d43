"""Engines train a model over ranks behind one protocol; the trainer knows nothing else of DeepSpeed or sharding."""

from __future__ import annotations

from upscale.config import Config
from upscale.distributed.world import World
from upscale.engines.protocol import Engine, Fragment, StepReport
from upscale.model.transformer import Transformer


def create(config: Config, model: Transformer, world: World) -> Engine:
    """The engine that `engine.name` names."""
    if config.engine.name == "fsdp":
        from upscale.engines.fsdp import FSDPEngine

        return FSDPEngine(config, model, world)
    from upscale.engines.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(config, model, world)


__all__ = ["Engine", "Fragment", "StepReport", "create"]
