"""Learning rate, batch size and active blocks as pure functions of the instances seen so far.

Nothing else drives a schedule: resuming is reading one counter (paper sections 6.1 and 6.2).
"""

from __future__ import annotations

import math

from upscale.config import AUTO, ModelConfig, ScheduleConfig
from upscale.config.schema import rows_per_lane


def learning_rate_factor(instances: int, schedule: ScheduleConfig) -> float:
    """The factor on every group's base learning rate: linear warm-up, then halving every `halve_every` instances, and
    with `decay` a fall towards the end of the schedule.

    The warm-up counts the batch about to be trained as seen at least in part, so that the first step is not at zero:
    the factor of an empty counter is that of one instance.
    """
    warm = min(1.0, max(instances, 1) / schedule.warmup) if schedule.warmup else 1.0
    factor = warm * decay_factor(instances, schedule)
    if not schedule.halve_every:
        return factor
    return factor * 0.5 ** (max(0, instances - schedule.warmup) / schedule.halve_every)


def decay_factor(instances: int, schedule: ScheduleConfig) -> float:
    """The factor of `schedule.decay`: 1 until it begins, its `to` from `schedule.instances` on."""
    decay = schedule.decay
    if decay is None:
        return 1.0
    over = schedule.instances - schedule.warmup if decay.over == AUTO else decay.over
    left = min(1.0, max(0.0, (schedule.instances - instances) / over))
    if decay.shape == "cosine":
        left = (1 - math.cos(math.pi * left)) / 2
    return decay.to + (1 - decay.to) * left


def batch_size(instances: int, schedule: ScheduleConfig, lanes: int) -> int:
    """Rows in the global batch: `start` until `from`, linear to `end` at `to`, rounded up to a multiple of lanes."""
    batch = schedule.batch
    if instances < batch.from_:
        wanted: float = batch.start
    elif instances >= batch.to:
        wanted = batch.end
    else:
        wanted = batch.start + (batch.end - batch.start) * (instances - batch.from_) / (batch.to - batch.from_)
    return math.ceil(math.ceil(wanted) / lanes) * lanes


def full_batch_size(schedule: ScheduleConfig, lanes: int) -> int:
    """The largest global batch the schedule reaches."""
    return rows_per_lane(schedule, lanes) * lanes


def planned_end(schedule: ScheduleConfig, lanes: int, steps: int | None = None) -> tuple[int, int]:
    """Steps and instances after which a run ends: whole batches up to `schedule.instances`, at most `steps` of them.

    Exactly, by walking while the batch changes; from `schedule.batch.to` on, all batches are equal.
    """
    most = math.inf if steps is None else steps
    taken = seen = 0
    while seen < min(schedule.batch.to, schedule.instances) and taken < most:
        seen, taken = seen + batch_size(seen, schedule, lanes), taken + 1
    last_batch = batch_size(seen, schedule, lanes)
    left = int(min(math.ceil(max(0, schedule.instances - seen) / last_batch), most - taken))
    return taken + left, seen + left * last_batch


def awake_groups(instances: int, schedule: ScheduleConfig) -> int:
    """How many groups have woken: one every `wake_every` instances, all from the start when that is 0."""
    return instances // schedule.wake_every if schedule.wake_every else 2**31


def active_blocks(instances: int, schedule: ScheduleConfig, model: ModelConfig) -> int:
    """The number of leading blocks that take part: the plain ones and every group that has woken."""
    woken = awake_groups(instances, schedule) * model.group_blocks
    return min(model.depth, model.plain_blocks + woken)


def crossed(before: int, after: int, every: int) -> bool:
    """Whether a multiple of `every` instances lies in (before, after]; never when `every` is 0."""
    return every > 0 and after // every > before // every
