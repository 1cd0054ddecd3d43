"""Loss spikes, `optimizer.spike`: a step whose loss is far above the recent ones does not train the model.

The rule is a function of the losses alone, so that every rank decides alike and a resumed run decides as the
uninterrupted one: a spike is a loss above `factor` times the median of the last `window` losses that trained the model.
(The median, because a mean follows the outliers that stay below the threshold.) It is known before the step's last
backward pass, whose gradient the trainer then makes NaN, and every engine skips such a step on every rank.

`skip` leaves it at that: it is for a bad batch. `rollback` is for weights that went wrong before the loss showed it:
they and their moments go back to the newest valid checkpoint, and all rounds since then are left out together with the
spike's (as in Chowdhery et al. 2022, section 5.1): repeating the steps between, which are deterministic, would lead to
the same weights again.

Rounds that are left out count as seen: rows, schedules and the numbers of steps do not depend on what was skipped, and
the lanes, which have advanced over them already, stay as they are. Every spike is recorded in the counters of the
checkpoints after it; a rollback writes one at once, so that no resume, in any world, undoes it.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass

import torch

from upscale.checkpoint.manager import Counters, Saver
from upscale.config import SpikeConfig
from upscale.distributed.world import World
from upscale.errors import RunError


@dataclass(frozen=True)
class Spike:
    """The updates of the steps `first` to `step` are left out; `loss` and `median` in nats per token."""

    step: int
    first: int
    loss: float
    median: float
    action: str


class SpikeGuard:
    """Judges each step's loss and does what `optimizer.spike` says; nothing, and at no cost, when that is null."""

    def __init__(self, settings: SpikeConfig | None, world: World, saver: Saver):
        self.settings, self.world, self.saver = settings, world, saver
        self.loss, self.median, self.found = 0.0, 0.0, False

    def judge(self, share: torch.Tensor, recent_losses: list[float]) -> bool:
        """Whether this step is a spike, the same on every rank; `share` is the rank's part of the global loss.

        Waits for the device and reduces over ranks.
        """
        if not self.settings:
            return False
        # The maximum, so that the ranks agree to the last bit whatever the sum is computed by.
        self.loss = self.world.all_reduce_max(self.world.all_reduce_sum(share.clone()).item())
        losses = recent_losses[-self.settings.window :]
        self.found = False
        if len(losses) == self.settings.window:
            self.median = statistics.median(losses)
            self.found = self.loss > self.settings.factor * self.median
        return self.found

    def reason(self) -> str | None:
        """What was found in the last step, if anything."""
        if not self.settings or not self.found:
            return None
        return (
            f"loss of {self.loss:.4f} nats is {self.loss / self.median:.2f} times the median of the last "
            f"{self.settings.window} (optimizer.spike.factor = {self.settings.factor:g})"
        )

    def settle(self, applied: bool, counters: Counters) -> tuple[bool, list[str]]:
        """Bring `counters`, which have just counted the step, up to date, and roll back if that is to be done.

        Returns whether it was, and notes for the user. Raises RunError when rollbacks follow each other without end.
        """
        if not self.settings:
            return False, []
        if applied:
            counters.recent_losses = [*counters.recent_losses, self.loss][-self.settings.window :]
        if not self.found:
            return False, []
        back, notes = self.saver.roll_back() if self.settings.action == "rollback" else (None, [])
        action, first = "skip", counters.step
        if back:
            action, first = "rollback", back.step + 1
            counters.recent_losses = back.recent_losses
            counters.skipped_steps = back.skipped_steps + counters.step - back.step
            notes.append(
                f"step {counters.step}: rolled back to the weights of step {back.step}; the rounds of steps {first} to "
                f"{counters.step} are left out"
            )
        elif self.settings.action == "rollback":
            notes.append(f"WARNING: step {counters.step}: no checkpoint to roll back to yet, only this step is skipped")
        counters.spikes = [*counters.spikes, asdict(Spike(counters.step, first, self.loss, self.median, action))]
        if (count := rollbacks_in_a_row(counters.spikes)) > self.settings.max_rollbacks:
            raise RunError(
                f"step {counters.step}: {count} rollbacks without a regular checkpoint between them, more than "
                f"optimizer.spike.max_rollbacks = {self.settings.max_rollbacks}. Lower optimizer.learning_rate, raise "
                "optimizer.spike.factor, or remove the newest checkpoints to start from an older one."
            )
        return back is not None, notes


def rollbacks_in_a_row(spikes: list[dict]) -> int:
    """How many of the last entries are rollbacks to the same weights: each to where the one before it left them."""
    count = 0
    for index in range(len(spikes) - 1, -1, -1):
        if spikes[index]["action"] != "rollback":
            break
        count += 1
        if index == 0 or spikes[index]["first"] > spikes[index - 1]["step"] + 1:
            break
    return count
