"""Signals that come while a command is still importing, which takes seconds."""

import os
import signal

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

requested: list[int] = []
"""Requests to stop a training that came before it was ready for them; it takes them up after its first step."""


def leave_quietly() -> None:
    """Until `command.run` takes over, SIGINT ends the process without a traceback through half-imported modules."""
    signal.signal(signal.SIGINT, lambda _number, _frame: os._exit(130))


def remember_stop_requests() -> None:
    """For training only, whose ranks must stop together: a rank that left alone would make the others wait for it."""
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, _frame: requested.append(number))
