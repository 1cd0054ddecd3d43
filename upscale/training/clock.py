"""The time that a run has trained: what `run.minutes` limits and a logged step states."""

from __future__ import annotations

import math
import time

from upscale.checkpoint.manager import Counters
from upscale.distributed.world import World


class Clock:
    """Counts the time of a run's steps in `counters.seconds`, over restarts; nothing else is counted."""

    def __init__(self, minutes: float | None, world: World, counters: Counters):
        self.limit_seconds = math.inf if minutes is None else 60 * minutes
        self.world, self.counters = world, counters
        self.is_over = self._limit_reached()
        """Whether the step under way is the last one, since the time is over on one rank or more."""
        self._begun, self._seconds, self._steps = 0.0, 0.0, 0

    def begin_step(self) -> None:
        """Every rank calls this, and all agree on whether the time is over."""
        self._begun = time.perf_counter()
        self.is_over = math.isfinite(self.limit_seconds) and self.world.any_later(self._limit_reached())()

    def end_step(self) -> None:
        spent = time.perf_counter() - self._begun
        self._seconds, self._steps = self._seconds + spent, self._steps + 1
        self.counters.seconds += spent
        if self.is_over:  # a run that ends by its minutes has spent them, whichever rank was the first
            self.counters.seconds = max(self.counters.seconds, self.limit_seconds)

    def take(self) -> tuple[float, int]:
        """Seconds of the steps since the last call, and how many they were."""
        taken = self._seconds, self._steps
        self._seconds, self._steps = 0.0, 0
        return taken

    def _limit_reached(self) -> bool:
        return self.counters.seconds >= self.limit_seconds
