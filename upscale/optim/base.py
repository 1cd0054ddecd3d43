"""What every optimizer is made of: its groups of parameters, its state, and steps counted since a group woke."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from upscale.model.blocks import Parameter
from upscale.model.parametrization import described, layer_factor, wake_group_of

if TYPE_CHECKING:
    from upscale.config import Config


@dataclass(frozen=True)
class Rates:
    """How a parameter is trained before the schedule. `matrices` lie on top of each other in it and are each updated as
    a whole; 0: its elements are updated one by one."""

    learning_rate: float
    weight_decay: float
    matrices: int = 0


@dataclass
class ParameterGroup:
    """Parameters that share their rates and the moment they wake; frozen ones have rates of zero."""

    names: list[str]
    learning_rate: float
    weight_decay: float
    wake_group: int
    frozen: bool = False
    matrices: int = 0


class ScheduledOptimizer:
    """A torch optimizer with one of its groups for each of `groups`. Subclasses in this room are the kinds there are.

    `torch_optimizer` is the optimizer itself. `held` lists (index of its group, tensor) for everything it steps on this
    rank; an engine that makes it step other tensors than the parameters it was given replaces the list, and `pieces`,
    which tells what lies in them: (name, first element, elements). `steps_taken` counts, for every wake-up group, the
    applied steps since it woke, and `missed` those of them in which a part of it was frozen.
    """

    kind: ClassVar[str]
    """Its name in `optimizer.kind`."""
    whole_matrices: ClassVar[bool]
    """Whether a step needs whole matrices, of which flat partitions hold none."""
    torch_optimizer: torch.optim.Optimizer

    def __init__(
        self, config: Config, groups: list[ParameterGroup], parameters: dict[str, torch.Tensor], device: torch.device
    ):
        self.groups, self.device = groups, device
        self.spans: dict[torch.Tensor, list[tuple[int, int, int]]] = {}
        self.steps_taken = {group.wake_group: 0 for group in groups}
        self.frozen = set(config.optimizer.freeze)
        self.places = {
            name: (group.wake_group, described(name, config.model.block).part)
            for group in groups
            for name in group.names
        }
        self.missed: dict[tuple[int, str], int] = {}
        self.held = [(index, parameters[name]) for index, group in enumerate(groups) for name in group.names]
        self.pieces: Callable[[], Iterable[tuple[str, torch.Tensor, int, int]]] = lambda: (
            (name, parameters[name], 0, parameters[name].numel()) for name in self.places
        )
        settings = [
            {
                "params": [parameters[name] for name in group.names],
                "lr": group.learning_rate,
                "weight_decay": group.weight_decay,
                "frozen": group.frozen,
            }
            for group in groups
        ]
        self.torch_optimizer = self.build(config, settings)

    def build(self, config: Config, settings: list[dict]) -> torch.optim.Optimizer:
        """The optimizer with these groups, which are in the order of `self.groups`."""
        raise NotImplementedError

    @classmethod
    def rates(cls, parameter: Parameter, shape: torch.Size, layer: float, config: Config) -> Rates:
        """How a parameter of this shape is trained, `layer` being the factor of `optimizer.layer_decay`."""
        raise NotImplementedError

    @classmethod
    def states(cls, matrices: int) -> tuple[str, ...]:
        """Names of the tensors that are kept for each parameter of a group, all of the parameter's shape."""
        raise NotImplementedError

    @classmethod
    def step_flops(cls, shape: torch.Size, matrices: int, config: Config) -> float:
        """Floating-point operations of matrix products in a step of one parameter."""
        return 0.0

    def prepare(self, learning_rate_factor: float, awake_groups: int) -> None:
        """Set every group's rates for the coming step, and the number of steps that Adam's bias correction counts from.

        A sleeping group has rates zero: where an engine fills its missing gradient with zeros nothing may decay.
        """
        for settings, group in zip(self.torch_optimizer.param_groups, self.groups, strict=True):
            awake = group.wake_group <= awake_groups
            settings["lr"] = group.learning_rate * learning_rate_factor if awake else 0.0
            settings["weight_decay"] = group.weight_decay if awake else 0.0
        own = self._own_counts() if self.missed else {}
        steps = [
            (state["step"], float(own.get(tensor, self.steps_taken[self.groups[index].wake_group])))
            for index, tensor in self.held
            if "step" in (state := self.torch_optimizer.state[tensor])
        ]
        if steps:
            # A few kernels where a fill of each tensor would be one per parameter.
            counters, values = map(list, zip(*steps, strict=True))
            torch._foreach_zero_(counters)
            torch._foreach_add_(counters, values)

    def count(self, awake_groups: int) -> None:
        """Count an applied step, for what took part in it."""
        for wake_group in self.steps_taken:
            self.steps_taken[wake_group] += wake_group <= awake_groups
        for wake_group, part in set(self.places.values()):
            if part in self.frozen and wake_group <= awake_groups:
                self.missed[wake_group, part] = self.missed.get((wake_group, part), 0) + 1

    def _own_counts(self) -> dict[torch.Tensor, int]:
        """The steps that a held tensor has taken. One whose pieces have taken different numbers is stepped in spans."""
        held: dict[torch.Tensor, list[tuple[int, int, int]]] = {}
        for name, tensor, begin, length in self.pieces():
            steps = self.steps_taken[self.places[name][0]] - self.missed.get(self.places[name], 0)
            held.setdefault(tensor, []).append((begin, begin + length, steps))
        own = {}
        self.spans = {}
        for tensor, pieces in held.items():
            own[tensor] = pieces[0][2]
            if len({steps for _, _, steps in pieces}) > 1:
                equal = itertools.groupby(sorted(pieces), key=lambda piece: piece[2])
                runs = [(steps, list(run)) for steps, run in equal]
                self.spans[tensor] = [(run[0][0], run[-1][1], steps) for steps, run in runs]
        return own

    def counts(self) -> dict[int | str, int]:
        """Applied steps of every wake-up group since it woke, and of its parts ("GROUP/PART") that missed some."""
        counts: dict[int | str, int] = {group: steps for group, steps in self.steps_taken.items()}
        counts |= {f"{group}/{part}": self.steps_taken[group] - missed for (group, part), missed in self.missed.items()}
        return counts

    def create_states(self) -> None:
        """torch makes a tensor's state in its first step; a checkpoint may be saved or loaded before it."""
        on_device = self.device if self.device.type == "cuda" else "cpu"
        for index, tensor in self.held:
            state, matrices = self.torch_optimizer.state[tensor], self.groups[index].matrices
            if not state:
                if not matrices:
                    state["step"] = torch.zeros((), dtype=torch.float32, device=on_device)
                for name in self.states(matrices):
                    state[name] = torch.zeros_like(tensor, requires_grad=False)

    def tensors(self, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """The live tensors of a held one: its weight and, by their names, its states; `create_states` has run."""
        state = self.torch_optimizer.state[tensor]
        return {"weight": tensor.detach(), **{name: value for name, value in state.items() if name != "step"}}

    def restore(self, counts: dict[int | str, int]) -> None:
        """Take the counters of a checkpoint, as `counts` gave them."""
        self.steps_taken = {group: counts[group] for group in self.steps_taken}
        places = {f"{group}/{part}": (group, part) for group, part in self.places.values()}
        self.spans = {}
        self.missed = {places[key]: counts[places[key][0]] - counts[key] for key in places if key in counts}


def groups_of(kind: type[ScheduledOptimizer], model: nn.Module, config: Config) -> list[ParameterGroup]:
    """Every parameter of the model in exactly one group of an optimizer, in a fixed order."""
    groups: dict[tuple, ParameterGroup] = {}
    for name, parameter in model.named_parameters():
        purpose = described(name, config.model.block)
        layer = layer_factor(name, config.model, config.optimizer.layer_decay)
        frozen = purpose.part in config.optimizer.freeze
        rates = kind.rates(purpose, parameter.shape, layer, config)
        if frozen:  # it keeps the states that it would have
            rates = replace(rates, learning_rate=0.0, weight_decay=0.0)
        key = (wake_group_of(name, config.model), rates, frozen)
        if key not in groups:
            groups[key] = ParameterGroup(
                names=[],
                learning_rate=rates.learning_rate,
                weight_decay=rates.weight_decay,
                wake_group=key[0],
                frozen=frozen,
                matrices=rates.matrices,
            )
        groups[key].names.append(name)
    return list(groups.values())


def freeze(groups: list[ParameterGroup], parameters: dict[str, torch.Tensor]) -> None:
    """Take frozen parameters out of the graph, and so out of the gradient's norm.

    After the engine has taken the model over: DeepSpeed drops a parameter from its partitions that needed no gradient
    before. There they then get a gradient of zero, which their group's rates of zero make harmless.
    """
    for group in groups:
        if group.frozen:
            for name in group.names:
                parameters[name].requires_grad_(False)
