"""What a config costs, from arithmetic alone: parameters, FLOPs, activation memory. No GPU and no model is needed."""

from __future__ import annotations

import torch

from upscale.config import Config, ModelConfig

# Dense bfloat16 peaks of the data sheets in FLOP/s; the first name found in the device's name counts.
PEAK_FLOPS = {
    "B200": 2.25e15,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A6000": 155e12,
}

# Saved for the backward pass of one block, in bytes per position and channel: the residual stream and both norms'
# inputs and outputs in float32, projections and the 4x hidden layer twice in bfloat16, dropout masks.
ACTIVATION_BYTES = 56
USABLE_MEMORY = 0.7
CPU_MICRO_BATCH = 16


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


def peak_flops(device: torch.device) -> float | None:
    """The data sheet's bfloat16 peak of this device, None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def micro_batch(config: Config, device: torch.device, largest: int, ranks: int) -> int:
    """Rows per pass: as configured, or what an estimate of the activations says fits, at most `largest`."""
    if config.engine.micro_batch != "auto":
        return min(config.engine.micro_batch, largest)
    if device.type == "cpu":
        return min(CPU_MICRO_BATCH, largest)
    model = config.model
    free, _ = torch.cuda.mem_get_info(device)
    # Weights and gradients in float32 everywhere, master weights and two moments divided over ranks from stage 1 on.
    state_bytes = parameters(model) * (8 + 12 / (ranks if config.engine.zero_stage else 1))
    blocks = 1 if model.checkpointing == "full" else model.depth
    row_bytes = model.context * (model.width * (blocks * ACTIVATION_BYTES + 8 * model.depth) + 12 * model.vocabulary)
    rows = max(1, int((free * USABLE_MEMORY - state_bytes) / row_bytes))
    return min(rows if rows < 8 else rows // 8 * 8, largest)
