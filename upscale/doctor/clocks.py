"""Clocks: how far the ranks' wall clocks are apart, by which logs, heartbeats and file times are read."""

from __future__ import annotations

import statistics
import time

from upscale.doctor.base import Check, Record, Session

ROUNDS = 7
LARGEST_SECONDS = 1.0


class Clocks(Check):
    kind = "clocks"

    def measure(self, session: Session) -> list[Record]:
        """The least distance from the median of several looks: a rank that is late at one of them is not wrong."""
        distances = []
        for _ in range(ROUNDS):
            session.world.barrier()
            everyone = session.world.gather_objects(time.time())
            distances.append(everyone[session.world.rank] - statistics.median_high(everyone))
        own = min(distances, key=abs)
        problem = None
        if abs(own) > LARGEST_SECONDS:
            problem = (
                "Set it by NTP (chronyc tracking shows its state), or ask the site: logs and file times would mislead"
            )
        return [self.record(session, "clock beside the others'", own, "s", problem)]
