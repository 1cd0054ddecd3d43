"""Parameters and floating-point operations of a config, exactly."""

from __future__ import annotations

from upscale.config import Config, ModelConfig
from upscale.schedule import active_blocks


def block_parameters(model: ModelConfig) -> int:
    """12 w^2 weights, 10 w biases and gains, and with qk_norm two gains of a head's size."""
    w = model.width
    return 12 * w * w + 10 * w + (2 * (w // model.heads) if model.qk_norm else 0)


def parameters(model: ModelConfig) -> int:
    """Every trained number of a resolved model config, exactly."""
    gates = max(0, model.depth - model.plain_blocks)
    embeddings = (model.vocabulary + model.context) * model.width
    head = model.vocabulary * (model.width + 1)
    return model.depth * block_parameters(model) + gates + embeddings + head


def flops_per_token(model: ModelConfig, active_blocks: int) -> float:
    """Forward and backward: 6 per weight of the active matrices and head, 12 w context per block for attention.

    That is PaLM's count (Chowdhery et al. 2022, appendix B), which ignores that attention is causal, as the published
    MFU figures we compare with do.
    """
    matrices = active_blocks * 12 * model.width**2 + model.vocabulary * model.width
    return 6 * matrices + 12 * active_blocks * model.width * model.context


def run_flops(config: Config) -> float:
    """The whole schedule's floating-point operations, with sleeping blocks left out while they sleep."""
    schedule, model = config.schedule, config.model
    total, begin = 0.0, 0
    while begin < schedule.instances:
        active = active_blocks(begin, schedule, model)
        asleep = active < model.depth and schedule.wake_every
        end = min(
            (begin // schedule.wake_every + 1) * schedule.wake_every if asleep else schedule.instances,
            schedule.instances,
        )
        total += (end - begin) * model.context * flops_per_token(model, active)
        begin = end
    return total
