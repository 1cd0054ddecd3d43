"""AdamW as both engines use it: rates from the table of roles and the schedule, steps counted since a group woke."""

from __future__ import annotations

import torch

from upscale.config import Config
from upscale.engines import STATES
from upscale.model.parametrization import ParameterGroup


class ScheduledAdamW:
    """torch.optim.AdamW with one of its groups for each of `groups`.

    `adamw` is the optimizer itself. `held` lists (index of its group, tensor) for everything it steps on this rank; an
    engine that makes it step other tensors than the parameters it was given replaces the list. `steps_taken` counts,
    for every wake-up group, the applied steps since it woke.
    """

    def __init__(
        self, config: Config, groups: list[ParameterGroup], parameters: dict[str, torch.Tensor], device: torch.device
    ):
        self.groups, self.device = groups, device
        self.steps_taken = {group.wake_group: 0 for group in groups}
        self.held = [(index, parameters[name]) for index, group in enumerate(groups) for name in group.names]
        self.adamw = torch.optim.AdamW(
            [
                {
                    "params": [parameters[name] for name in group.names],
                    "lr": group.learning_rate,
                    "weight_decay": group.weight_decay,
                }
                for group in groups
            ],
            betas=tuple(config.optimizer.betas),
            eps=config.optimizer.epsilon,
            fused=device.type == "cuda",
        )

    def prepare(self, learning_rate_factor: float, awake_groups: int) -> None:
        """Set every group's rates for the coming step, and the number of steps that Adam's bias correction counts from.

        A sleeping group has rates zero: where an engine fills its missing gradient with zeros nothing may decay.
        """
        for settings, group in zip(self.adamw.param_groups, self.groups, strict=True):
            awake = group.wake_group <= awake_groups
            settings["lr"] = group.learning_rate * learning_rate_factor if awake else 0.0
            settings["weight_decay"] = group.weight_decay if awake else 0.0
        steps = [
            (state["step"], float(self.steps_taken[self.groups[index].wake_group]))
            for index, tensor in self.held
            if (state := self.adamw.state[tensor])
        ]
        if steps:
            # A few kernels where a fill of each tensor would be one per parameter.
            counters, values = map(list, zip(*steps, strict=True))
            torch._foreach_zero_(counters)
            torch._foreach_add_(counters, values)

    def count(self, awake_groups: int) -> None:
        """Count an applied step."""
        for wake_group in self.steps_taken:
            self.steps_taken[wake_group] += wake_group <= awake_groups

    def create_states(self) -> None:
        """AdamW makes its state in a tensor's first step; a checkpoint may be saved or loaded before it."""
        on_device = self.device if self.device.type == "cuda" else "cpu"
        for _, tensor in self.held:
            state = self.adamw.state[tensor]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=on_device)
                state["exp_avg"] = torch.zeros_like(tensor, requires_grad=False)
                state["exp_avg_sq"] = torch.zeros_like(tensor, requires_grad=False)

    def tensors(self, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """The live tensors of a held one, by the names in STATES; `create_states` has run."""
        state = self.adamw.state[tensor]
        return {key: tensor.detach() if key == "weight" else state[key] for key in STATES}

    def restore(self, steps_taken: dict[int, int]) -> None:
        """Take the counters of a checkpoint."""
        self.steps_taken = {group: steps_taken[group] for group in self.steps_taken}


def freeze(groups: list[ParameterGroup], parameters: dict[str, torch.Tensor]) -> None:
    """Take frozen parameters out of the graph, and so out of the gradient's norm.

    After the engine has taken the model over: DeepSpeed drops a parameter from its partitions that needed no gradient
    before. There they then get a gradient of zero, which their group's rates of zero make harmless.
    """
    for group in groups:
        if group.frozen:
            for name in group.names:
                parameters[name].requires_grad_(False)
