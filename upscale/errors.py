"""The exceptions that carry a message for the user, and the exit codes of every command."""

from __future__ import annotations

RUN_ERROR_EXIT_CODE = 1
USER_ERROR_EXIT_CODE = 2
STOPPED_EXIT_CODE = 75
INTERRUPTED_EXIT_CODE = 130


class UserError(Exception):
    """A mistake in a command, a config or a run directory: printed once, exit code 2.

    The message says what was given, what is allowed and what to change.
    """


class LaunchError(UserError):
    """A mistake in how this rank was started, which other ranks need not share: printed by every rank that has it."""


class RunError(Exception):
    """A run that cannot go on through no mistake in its command: printed without a traceback, exit code 1."""
