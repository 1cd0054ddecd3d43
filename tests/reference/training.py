"""A plain single-process training step: the obvious one that every engine must equal."""

from __future__ import annotations

import torch

from upscale import schedule
from upscale.config import Config
from upscale.model import parametrization
from upscale.model.transformer import row_losses


class PlainTrainer:
    """torch.optim.AdamW over the whole batch at once; a sleeping group is simply not given to the optimizer yet, and a
    frozen one needs no gradient."""

    def __init__(self, config: Config):
        self.config = config
        self.model = parametrization.build(config)
        self.optimizers: dict[int, torch.optim.AdamW] = {}
        self.groups = parametrization.parameter_groups(self.model, config)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(parametrization.part_of(name) not in config.optimizer.freeze)

    def step(self, rows: torch.Tensor, instances: int) -> float:
        """Train on rows (rows, context + 1); the mean loss in nats per token."""
        parameters = dict(self.model.named_parameters())
        awake = schedule.awake_groups(instances, self.config.schedule)
        active = schedule.active_blocks(instances, self.config.schedule, self.config.model)
        factor = schedule.learning_rate_factor(instances, self.config.schedule)
        first = self.config.data.first_target
        logits, targets = self.model(rows[:, :-1], active)[:, first - 1 :], rows[:, first:]
        loss = row_losses(logits, targets).sum() / targets.numel()
        self.model.zero_grad(set_to_none=True)
        (loss + self.config.optimizer.z_loss * (logits.exp().sum(-1).log() ** 2).mean()).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip)
        for index, group in enumerate(self.groups):
            if group.wake_group <= awake:
                if index not in self.optimizers:
                    self.optimizers[index] = torch.optim.AdamW(
                        [parameters[name] for name in group.names],
                        weight_decay=group.weight_decay,
                        betas=tuple(self.config.optimizer.betas),
                        eps=self.config.optimizer.epsilon,
                    )
                self.optimizers[index].param_groups[0]["lr"] = group.learning_rate * factor
                self.optimizers[index].step()
        return loss.item()
