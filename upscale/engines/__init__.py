"""Engines train a model over ranks behind one protocol; the trainer knows nothing else of DeepSpeed or sharding."""

from __future__ import annotations

from collections.abc import Iterable

from upscale.config import Config
from upscale.distributed.world import World
from upscale.engines.protocol import Engine, Fragment, StepReport, Trains
from upscale.model import parametrization
from upscale.model.transformer import Transformer


def create(config: Config, model: Transformer, world: World) -> Engine:
    """The engine that `engine.name` names.

    A model on the meta device gets memory where and as the engine holds it, never whole where it is sharded; its
    weights are then whatever is written through `fragments`.
    """
    if config.engine.name == "fsdp":
        from upscale.engines.fsdp import FSDPEngine

        return FSDPEngine(config, model, world)
    from upscale.engines.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(config, model, world)


def initialize(config: Config, fragments: Iterable[Fragment]) -> None:
    """Write random weights to these fragments: what the model of the config begins with, whoever holds which part.

    The engine's `loaded` must be called afterwards.
    """
    shapes = parametrization.shapes(config)
    for fragment in fragments:
        name = fragment.name
        parametrization.initialize(fragment.tensors["weight"], name, shapes[name], config, fragment.offset)


__all__ = ["Engine", "Fragment", "StepReport", "Trains", "create", "initialize"]
