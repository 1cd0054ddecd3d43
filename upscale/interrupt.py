"""Ctrl-C while a command is still importing: leave at once with the exit code of an interrupted program."""

import os
import signal


def leave_quietly() -> None:
    """Until `command.run` takes over, SIGINT ends the process without a traceback through half-imported modules."""
    signal.signal(signal.SIGINT, lambda _number, _frame: os._exit(130))
