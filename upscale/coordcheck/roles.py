"""muP's table of roles against the `mup` package, at any width and without a single weight.

`mup` is told the shapes of the model, of one at the base width and of a third, by which it knows the dimensions that
grow. Everything is asked of its own functions: the standard deviation of `mup.init.normal_`, the rates of `MuAdamW`,
the multiplier of `MuReadout`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import mup
import torch
from torch import nn

from upscale import optim
from upscale.config import Config
from upscale.coordcheck.widths import at_width
from upscale.model import parametrization
from upscale.model.transformer import Transformer

TOLERANCE = 1e-5
"""Of a relative difference: `mup` computes in float32."""
STANDARD_ERRORS = 6
"""By how many a drawn standard deviation may differ from its formula."""
FEWEST_NUMBERS = 1000
STANDARD_DEVIATION, LEARNING_RATE, WEIGHT_DECAY = "standard deviation", "learning rate", "weight decay"
OUTPUT_MULTIPLIER = "output multiplier"


@dataclass(frozen=True)
class Comparison:
    """One number of ours at one width beside what it should be, and the relative difference allowed.

    `name` has * for the number of a block, progressive or not.
    """

    name: str
    role: str
    width: int
    quantity: str
    ours: float
    expected: float
    tolerance: float = TOLERANCE

    @property
    def deviates(self) -> bool:
        return not math.isclose(self.ours, self.expected, rel_tol=self.tolerance, abs_tol=1e-12)


def compare(config: Config, widths: Sequence[int]) -> list[Comparison]:
    """Every parameter's initialisation, learning rate and weight decay, and the factor on the logits, at each width.

    `config` must be resolved. Parameters of all blocks that agree are one entry. Rates that AdamW does not use (Muon's)
    are left out.
    """
    base, wider = (_shapes(at_width(config, width)) for width in (config.mup.base_width, 2 * config.mup.base_width))
    found: dict[Comparison, None] = {}
    for width in widths:
        chosen = at_width(config, width)
        model = _shapes(chosen)
        mup.set_base_shapes(model, base, delta=wider, rescale_params=False, do_assert=False)
        for one in (*_standard_deviations(chosen, model, base), *_rates(chosen, model), _multiplier(chosen, model)):
            found[one] = None
    return list(found)


def drawn(config: Config, model: Transformer) -> list[Comparison]:
    """The standard deviation and, where that is zero, the value of every parameter as built, against the table."""
    found = []
    for name, parameter in model.named_parameters():
        role = parametrization.role_of(name, config.model.block)
        rule = parametrization.rule(role, parameter.shape, config.model, config.mup)
        numbers = parameter.detach().float()
        place = _in_all_blocks(name), role, config.model.width
        if rule.standard_deviation == 0:
            furthest = (numbers - rule.mean).abs().max().item()
            found.append(Comparison(*place, "drawn value", rule.mean + furthest, rule.mean))
        elif numbers.numel() >= FEWEST_NUMBERS:
            allowed = STANDARD_ERRORS / math.sqrt(2 * numbers.numel())
            drawn_deviation = numbers.std().item()
            found.append(
                Comparison(*place, "drawn standard deviation", drawn_deviation, rule.standard_deviation, allowed)
            )
    return found


def _shapes(config: Config) -> Transformer:
    return parametrization.build(config, "meta")


def _in_all_blocks(name: str) -> str:
    return re.sub(r"^blocks\.\d+\.(block\.)?", "blocks.*.", name)


def _standard_deviations(config: Config, model: Transformer, base: Transformer) -> list[Comparison]:
    found, at_base = [], at_width(config, config.mup.base_width)
    growth: dict[tuple[int, float], float] = {}
    for name, parameter in model.named_parameters():
        role = parametrization.role_of(name, config.model.block)
        ours = parametrization.rule(role, parameter.shape, config.model, config.mup)
        theirs = parametrization.rule(role, base.get_parameter(name).shape, at_base.model, config.mup)
        kind = parameter.infshape.ninf(), parameter.infshape.width_mult()
        growth[kind] = growth.get(kind) or _growth(parameter)
        expected = theirs.standard_deviation * growth[kind]
        place = _in_all_blocks(name), role, config.model.width
        found.append(Comparison(*place, STANDARD_DEVIATION, ours.standard_deviation, expected))
    return found


def _growth(parameter: torch.Tensor) -> float:
    """By what `mup.init.normal_` multiplies the standard deviation of a parameter: of the same numbers, exactly."""
    scaled, plain = torch.empty(16), torch.empty(16)
    scaled.infshape = parameter.infshape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mup.init.normal_(scaled, 0, 1)
        torch.manual_seed(0)
        nn.init.normal_(plain, 0, 1)
    return (scaled.norm() / plain.norm()).item()


def _rates(config: Config, model: Transformer) -> list[Comparison]:
    optimizer = config.optimizer
    theirs = mup.MuAdamW(model.parameters(), lr=optimizer.learning_rate, weight_decay=optimizer.weight_decay)
    expected = {id(p): (group["lr"], group["weight_decay"]) for group in theirs.param_groups for p in group["params"]}
    found = []
    for group in optim.parameter_groups(model, config):
        for name in group.names if not group.matrices else ():
            parameter = model.get_parameter(name)
            place = _in_all_blocks(name), parametrization.role_of(name, config.model.block), config.model.width
            learning_rate, weight_decay = expected[id(parameter)]
            allowed = TOLERANCE + _rounding(config, parameter)
            found.append(Comparison(*place, LEARNING_RATE, group.learning_rate, learning_rate, allowed))
            found.append(Comparison(*place, WEIGHT_DECAY, group.weight_decay, weight_decay, allowed))
    return found


def _rounding(config: Config, parameter: torch.Tensor) -> float:
    """By what share a matrix has grown more or less than the width, since its fan in (8/3 of the width, say) is rounded
    to a whole number: `mup` sees the fan in and our table the width."""
    if parameter.infshape.ninf() < 2:
        return 0.0
    return abs(parameter.infshape.width_mult() * config.mup.base_width / config.model.width - 1) * (1 + TOLERANCE)


def _multiplier(config: Config, model: Transformer) -> Comparison:
    """Against a `MuReadout` that reads the same width."""
    base = config.mup.base_width
    readout, at_base, wider = (
        nn.ModuleDict({"head": mup.MuReadout(width, 1, bias=False, device="meta")})
        for width in (config.model.width, base, 2 * base)
    )
    mup.set_base_shapes(readout, at_base, delta=wider, rescale_params=False)
    expected = 1 / readout["head"].width_mult()
    return Comparison("logits", "output", config.model.width, OUTPUT_MULTIPLIER, model.output_multiplier, expected)
