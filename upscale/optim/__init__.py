"""Optimizers, with rates from the roles of parameters and the schedule. An optimizer is one file here."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch
from torch import nn

from upscale.optim.base import ParameterGroup, ScheduledOptimizer, freeze, groups_of
from upscale.settings import classes

if TYPE_CHECKING:
    from upscale.config import Config

KINDS: dict[str, type[ScheduledOptimizer]] = classes(sys.modules[__name__], ScheduledOptimizer)
"""The class of every optimizer, by the name that `optimizer.kind` gives it."""


def parameter_groups(model: nn.Module, config: Config) -> list[ParameterGroup]:
    """Every parameter of the model in exactly one group of the config's optimizer, in a fixed order."""
    return groups_of(KINDS[config.optimizer.kind], model, config)


def create(
    config: Config, groups: list[ParameterGroup], parameters: dict[str, torch.Tensor], device: torch.device
) -> ScheduledOptimizer:
    """The config's optimizer for these groups of `parameters`."""
    return KINDS[config.optimizer.kind](config, groups, parameters, device)


__all__ = ["KINDS", "ParameterGroup", "ScheduledOptimizer", "create", "freeze", "parameter_groups"]
