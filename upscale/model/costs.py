"""Parameters, floating-point operations and saved bytes of a model: its blocks' numbers and those of what is around
them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from upscale.model import blocks

if TYPE_CHECKING:
    from upscale.config import ModelConfig


def block_parameters(model: ModelConfig) -> int:
    """Every trained number of one block, without its gate."""
    return blocks.KINDS[model.block].parameters_in_all(model)


def matrix_parameters(model: ModelConfig) -> int:
    """Every number in the matrices of all blocks."""
    return model.depth * blocks.KINDS[model.block].matrix_parameters(model)


def progressive_blocks(model: ModelConfig) -> int:
    """Blocks with a gate."""
    return max(0, model.depth - model.plain_blocks)


def parameters(model: ModelConfig) -> int:
    """Every trained number of a resolved model config, exactly."""
    block = blocks.KINDS[model.block]
    positions = model.context if block.learned_positions else 0
    embeddings = (model.vocabulary + positions + block.final_norm) * model.width
    head = model.vocabulary * (model.width + 1)
    return model.depth * block_parameters(model) + progressive_blocks(model) + embeddings + head


def flops_per_token(model: ModelConfig, active_blocks: int) -> float:
    """Forward and backward: the active blocks', and 6 for a number in the head's matrix."""
    return active_blocks * blocks.KINDS[model.block].flops_per_token(model) + 6 * model.vocabulary * model.width


def activation_bytes(model: ModelConfig, rows: int, precision: str, compiled: bool = False) -> float:
    """The peak of what a microbatch of `rows` needs on a GPU besides the states, all blocks awake.

    Compiled blocks treat selective checkpointing as none (model/activation_checkpointing.py).
    """
    block, w, positions = blocks.KINDS[model.block], model.width, rows * model.context
    saved = (block.compiled_bytes if compiled else block.saved_bytes)(model, rows, precision)
    if model.checkpointing == "none" or (model.checkpointing == "selective" and compiled):
        inside = model.depth * saved + progressive_blocks(model) * positions * 4 * w
    else:
        # What every block keeps, and the insides of the one being computed again.
        inside = saved + model.depth * block.kept_bytes(model, rows, precision)
    # The final norm's input, normalised input and its size.
    norm = positions * (8 * w + 4) if block.final_norm else 0
    # Logits in bfloat16 and float32, scaled; log-probabilities, and the gradients of these.
    return inside + norm + positions * (6 * w + 22 * model.vocabulary)
