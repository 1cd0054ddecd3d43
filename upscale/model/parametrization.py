"""muP (Yang et al. 2022): one table of roles gives every parameter its initialisation, learning rate and weight decay.

With r = width / base_width, trained by AdamW:

| role      | init standard deviation | learning rate | weight decay | forward |
|-----------|-------------------------|---------------|--------------|---------|
| embedding | 1                       | 1             | 1            |         |
| hidden    | 1 / sqrt(fan in)        | 1 / r         | r            |         |
| output    | 1 / base_width          | 1             | 1            | 1 / r   |
| bias      | 0                       | 1             | 1            |         |
| gain      | 0 (value 1)             | 1             | 1            |         |
| gate      | 0                       | 1             | 1            |         |

Every block names the roles of its parameters (model/blocks). Learning rate times weight decay is the same for every
role, so decay does not depend on the width; that is also the rule of `mup.MuAdamW`, the oracle of the tests. The
numbers are floats taken from the config alone: nothing is attached to a parameter that sharding could lose.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from upscale.model import blocks, weights
from upscale.model.blocks import Parameter
from upscale.model.transformer import Transformer

if TYPE_CHECKING:
    from upscale.config import Config, ModelConfig, MupConfig

ROLES = ("embedding", "hidden", "output", "bias", "gain", "gate")

SKELETON = {
    "token_embedding.weight": Parameter("embedding", "embeddings"),
    "position_embedding.weight": Parameter("embedding", "embeddings"),
    "final_norm.weight": Parameter("gain", "norms"),
    "head.weight": Parameter("output", "head"),
    "head.bias": Parameter("bias", "head"),
}
"""Every parameter that a model has outside its blocks; those inside are in the block's own table."""
GATE = Parameter("gate", "gates")


def described(name: str, block: str = "paper") -> Parameter:
    """What a parameter of a model of such blocks is for; a name that is in no table is our bug."""
    inner = re.fullmatch(r"blocks\.\d+\.(?:block\.)?(.+)", name)
    if not inner and name in SKELETON:
        return SKELETON[name]
    if inner and inner.group(1) == "gate":
        return GATE
    if inner and inner.group(1) in blocks.KINDS[block].parameter_table:
        return blocks.KINDS[block].parameter_table[inner.group(1)]
    raise LookupError(f"parameter {name!r} is in no table: list it in that of the block {block}, or in SKELETON")


def role_of(name: str, block: str = "paper") -> str:
    """The role of a parameter by its name, in a model of such blocks."""
    return described(name, block).role


def part_of(name: str, block: str = "paper") -> str:
    """The part of the model that a parameter belongs to, as `init.reinitialize` and `optimizer.freeze` name it."""
    return described(name, block).part


@dataclass(frozen=True)
class Rule:
    """What one role means at one width."""

    mean: float
    standard_deviation: float
    learning_rate_multiplier: float
    weight_decay_multiplier: float


def rule(role: str, shape: Iterable[int], model: ModelConfig, mup: MupConfig) -> Rule:
    """The table's row for a parameter of this shape; without muP every learning rate is the same and the output
    starts at 1 / sqrt(fan in)."""
    ratio = model.width / mup.base_width if mup.enabled else 1.0
    fan_in = list(shape)[-1]
    if role == "embedding":
        return Rule(0, 1, 1, 1)
    if role == "hidden":
        return Rule(0, 1 / math.sqrt(fan_in), 1 / ratio, ratio)
    if role == "output":
        return Rule(0, 1 / mup.base_width if mup.enabled else 1 / math.sqrt(fan_in), 1, 1)
    return Rule(1 if role == "gain" else 0, 0, 1, 1)


def output_multiplier(model: ModelConfig, mup: MupConfig) -> float:
    """The factor on the logits, 1 / r."""
    return mup.base_width / model.width if mup.enabled else 1.0


def build(config: Config, device: torch.device | str = "cpu") -> Transformer:
    """The model of a resolved config, initialised from its seed of weights alone.

    On the meta device it has only shapes, to count, or for an engine to give memory to.
    """
    device = torch.device(device)
    # What is only counted may have a precision that is not settled yet.
    in_bfloat16 = config.engine.precision == "bf16" if device.type == "meta" else config.engine.in_bfloat16
    with torch.device("meta"):  # where torch's own initialisation costs nothing
        model = Transformer(config.model, output_multiplier(config.model, config.mup), in_bfloat16)
    if device.type != "meta":
        weights.materialize(model, device)
        for name, parameter in model.named_parameters():
            initialize(parameter.detach().view(-1), name, parameter.shape, config)
    return model


def shapes(config: Config) -> dict[str, torch.Size]:
    """The shape of every parameter, in the order of the model."""
    return {name: parameter.shape for name, parameter in build(config, "meta").named_parameters()}


@torch.no_grad()
def initialize(out: torch.Tensor, name: str, shape: torch.Size, config: Config, offset: int = 0) -> None:
    """Fill `out`, flat float32, with elements [offset, offset + n) of a parameter of this shape, by its role."""
    chosen = rule(role_of(name, config.model.block), shape, config.model, config.mup)
    if not chosen.standard_deviation:
        out.fill_(chosen.mean)
        return
    weights.draw_normal(out, config.seed("weights"), name, math.prod(shape), offset)
    out.mul_(chosen.standard_deviation).add_(chosen.mean)


def wake_group(block: int, model: ModelConfig) -> int:
    """0 for a plain block, k for a block of the k-th group to wake."""
    return 0 if block < model.plain_blocks else 1 + (block - model.plain_blocks) // model.group_blocks


def wake_group_of(name: str, model: ModelConfig) -> int:
    """0 for a parameter that trains from the start, k for one of the k-th group of blocks to wake."""
    block = re.match(r"blocks\.(\d+)\.", name)
    return wake_group(int(block.group(1)), model) if block else 0


def layer_factor(name: str, model: ModelConfig, layer_decay: float) -> float:
    """`optimizer.layer_decay` to the power of a parameter's distance from the head: 1 for the head and its norm."""
    block = re.match(r"blocks\.(\d+)\.", name)
    if block:
        return layer_decay ** (model.depth - int(block.group(1)))
    return layer_decay ** (model.depth + 1) if part_of(name, model.block) == "embeddings" else 1.0
