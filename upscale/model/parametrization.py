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

Learning rate times weight decay is the same for every role, so decay does not depend on the width; that is also the
rule of `mup.MuAdamW`, the oracle of the tests. The numbers are floats taken from the config alone: nothing is attached
to a parameter that sharding could lose.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from upscale.config import Config, ModelConfig, MupConfig
from upscale.model.transformer import Transformer
from upscale.schedule import wake_group

ROLE_PATTERNS = {
    "embedding": r"(token|position)_embedding\.weight",
    "hidden": r"blocks\.\d+\.(block\.)?(attention\.project_(in|out)|feedforward_(in|out))\.weight",
    "output": r"head\.weight",
    "bias": r"(head|blocks\.\d+\.(block\.)?(attention\.project_out|feedforward_(in|out)|\w+_norm))\.bias",
    "gain": r"blocks\.\d+\.(block\.)?(attention\.)?\w+_norm\.weight",
    "gate": r"blocks\.\d+\.gate",
}

# What `init.reinitialize` and `optimizer.freeze` name. The norms of queries and keys belong to the attention.
PART_PATTERNS = {
    "embeddings": r"(token|position)_embedding\.weight",
    "head": r"head\.(weight|bias)",
    "attention": r"blocks\.\d+\.(block\.)?attention\..+",
    "ff": r"blocks\.\d+\.(block\.)?feedforward_(in|out)\.(weight|bias)",
    "norms": r"blocks\.\d+\.(block\.)?(attention|feedforward)_norm\.(weight|bias)",
    "gates": r"blocks\.\d+\.gate",
}


def role_of(name: str) -> str:
    """The role of a parameter by its name; a name that is in no row of the table, or in two, is our bug."""
    return _only(ROLE_PATTERNS, "roles", name)


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to, as `init.reinitialize` and `optimizer.freeze` name it."""
    return _only(PART_PATTERNS, "parts", name)


def _only(patterns: dict[str, str], what: str, name: str) -> str:
    found = [key for key, pattern in patterns.items() if re.fullmatch(pattern, name)]
    if len(found) != 1:
        raise LookupError(f"parameter {name!r} has {len(found)} {what}; list it once in the table of them")
    return found[0]


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
    """The model of a resolved config, initialised from `run.seed` alone; on the meta device only its shapes."""
    only_shapes = torch.device(device).type == "meta"
    in_bfloat16 = not only_shapes and config.engine.in_bfloat16
    with torch.device(device):
        model = Transformer(config.model, output_multiplier(config.model, config.mup), in_bfloat16)
    if not only_shapes:
        initialize(model, config)
    return model


@torch.no_grad()
def initialize(model: nn.Module, config: Config) -> None:
    """Draw every parameter by its role, in the order of the model, on the CPU: the same weights on any device."""
    generator = torch.Generator().manual_seed(config.run.seed)
    for name, parameter in model.named_parameters():
        chosen = rule(role_of(name), parameter.shape, config.model, config.mup)
        if chosen.standard_deviation:
            draw = torch.empty(parameter.shape).normal_(chosen.mean, chosen.standard_deviation, generator=generator)
            parameter.copy_(draw)
        else:
            parameter.fill_(chosen.mean)


def wake_group_of(name: str, model: ModelConfig) -> int:
    """0 for a parameter that trains from the start, k for one of the k-th group of blocks to wake."""
    block = re.match(r"blocks\.(\d+)\.", name)
    return wake_group(int(block.group(1)), model) if block else 0


def layer_factor(name: str, model: ModelConfig, layer_decay: float) -> float:
    """`optimizer.layer_decay` to the power of a parameter's distance from the head: 1 for the head itself."""
    block = re.match(r"blocks\.(\d+)\.", name)
    if block:
        return layer_decay ** (model.depth - int(block.group(1)))
    return 1.0 if part_of(name) == "head" else layer_decay ** (model.depth + 1)


@dataclass
class ParameterGroup:
    """Parameters that share a learning rate, a weight decay and the moment they wake; frozen ones have no rates."""

    names: list[str]
    learning_rate: float
    weight_decay: float
    wake_group: int
    frozen: bool = False


def parameter_groups(model: nn.Module, config: Config) -> list[ParameterGroup]:
    """Every parameter of the model in exactly one group, in a fixed order."""
    groups: dict[tuple, ParameterGroup] = {}
    for name, parameter in model.named_parameters():
        chosen, optimizer = rule(role_of(name), parameter.shape, config.model, config.mup), config.optimizer
        frozen = part_of(name) in optimizer.freeze
        rate = chosen.learning_rate_multiplier * layer_factor(name, config.model, optimizer.layer_decay)
        rates = (0.0, 0.0) if frozen else (rate, chosen.weight_decay_multiplier)
        key = (wake_group_of(name, config.model), *rates)
        if key not in groups:
            groups[key] = ParameterGroup(
                names=[],
                learning_rate=optimizer.learning_rate * rates[0],
                weight_decay=optimizer.weight_decay * rates[1],
                wake_group=key[0],
                frozen=frozen,
            )
        groups[key].names.append(name)
    return list(groups.values())
