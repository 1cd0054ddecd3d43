"""A plain single-process training step: the obvious one that every engine must equal."""

from __future__ import annotations

import torch

from upscale import optim, schedule
from upscale.config import Config
from upscale.model import parametrization
from upscale.model.transformer import row_losses

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class PlainMuon:
    """Muon as it is written down: momentum, then p(p(...)) of every singular value of what lies ahead of it, p(s) being
    a s + b s^3 + c s^5, in float64 and matrix by matrix."""

    def __init__(self, parameters: list[torch.nn.Parameter], matrices: int, config: Config):
        self.parameters, self.matrices, self.settings = parameters, matrices, config.optimizer.muon
        self.means = [torch.zeros_like(parameter) for parameter in parameters]

    @torch.no_grad()
    def step(self, learning_rate: float, weight_decay: float) -> None:
        momentum = self.settings.momentum
        for parameter, mean in zip(self.parameters, self.means, strict=True):
            if parameter.grad is None:  # frozen now
                continue
            mean.mul_(momentum).add_(parameter.grad, alpha=1 - momentum)
            ahead = (1 - momentum) * parameter.grad + momentum * mean
            moved = torch.cat([self.direction(part) for part in ahead.split(len(ahead) // self.matrices)])
            parameter.copy_((1 - learning_rate * weight_decay) * parameter - learning_rate * moved)

    def direction(self, matrix: torch.Tensor) -> torch.Tensor:
        if not matrix.any():  # of a block whose gate is still zero
            return matrix
        left, values, right = torch.linalg.svd(matrix.double() / matrix.double().norm(), full_matrices=False)
        a, b, c = COEFFICIENTS
        for _ in range(self.settings.newton_schulz_steps):
            values = a * values + b * values**3 + c * values**5
        scale = (matrix.shape[0] / matrix.shape[1]) ** 0.5
        return (scale * left @ torch.diag(values) @ right).to(matrix.dtype)


class PlainTrainer:
    """torch.optim.AdamW, and PlainMuon for matrices if asked for, over the whole batch at once.

    A sleeping group is simply not given to the optimizer yet, and a frozen one needs no gradient.
    """

    def __init__(self, config: Config):
        self.config = config
        self.model = parametrization.build(config)
        self.optimizers: dict[int, torch.optim.AdamW | PlainMuon] = {}
        self.groups = optim.parameter_groups(self.model, config)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(parametrization.part_of(name, config.model.block) not in config.optimizer.freeze)

    def step(self, rows: torch.Tensor, instances: int) -> float:
        """Train on rows (rows, context + 1); the mean loss in nats per target. Negative tokens are complements of ids
        that are no targets."""
        parameters = dict(self.model.named_parameters())
        awake = schedule.awake_groups(instances, self.config.schedule)
        active = schedule.active_blocks(instances, self.config.schedule, self.config.model)
        factor = schedule.learning_rate_factor(instances, self.config.schedule)
        first = self.config.data.first_target
        inputs = rows[:, :-1] if rows.dtype == torch.uint8 else torch.where(rows < 0, -1 - rows, rows)[:, :-1]
        logits, targets = self.model(inputs, active)[:, first - 1 :], rows[:, first:]
        counted = targets >= 0
        loss = row_losses(logits[counted][None], targets[counted][None]).sum() / counted.sum()
        self.model.zero_grad(set_to_none=True)
        (loss + self.config.optimizer.z_loss * (logits[counted].exp().sum(-1).log() ** 2).mean()).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip)
        for index, group in enumerate(self.groups):
            if group.wake_group <= awake and not group.frozen:
                if group.matrices:
                    trained = [parameters[name] for name in group.names]
                    muon = self.optimizers.setdefault(index, PlainMuon(trained, group.matrices, self.config))
                    muon.step(group.learning_rate * factor, group.weight_decay)
                    continue
                if index not in self.optimizers:
                    self.optimizers[index] = torch.optim.AdamW(
                        [parameters[name] for name in group.names],
                        weight_decay=group.weight_decay,
                        betas=tuple(self.config.optimizer.betas),
                        eps=self.config.optimizer.epsilon,
                        fused=True,  # as the engines', so that both round alike
                    )
                self.optimizers[index].param_groups[0]["lr"] = group.learning_rate * factor
                self.optimizers[index].step()
        return loss.item()
