"""Requests to stop: signals, also those that come while a command is still importing, which takes seconds."""

import os
import signal
from collections.abc import Callable
from types import FrameType

from upscale.machine.parent import end_with_parent

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""SIGHUP comes when the terminal closes, unless the training was started by nohup."""

SUPERVISOR = "UPSCALE_SUPERVISOR"
"""Environment variable with the number of the process that sees to this one: a rank's supervisor, or a supervisor's
study."""

requested: list[int] = []
"""Requests to stop so far. What came before a training is ready for them it takes up after its first step."""


def leave_quietly() -> None:
    """Until `command.run` takes over, SIGINT ends the process without a traceback through half-imported modules."""
    signal.signal(signal.SIGINT, lambda _number, _frame: os._exit(130))


def remember_stop_requests() -> None:
    """For training only, whose ranks must stop together: a rank that left alone would make the others wait for it."""
    catch_stop_signals(lambda _number, _frame: None)


def catch_stop_signals(handler: Callable) -> None:
    """Have `handler` called for every request to stop; an ignored SIGHUP, as nohup leaves it, stays ignored."""

    def receive(number: int, frame: FrameType | None) -> None:
        requested.append(number)
        handler(number, frame)

    for number in STOP_SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, receive)


def stop_with_supervisor() -> None:
    """Where another process sees to this one, take its end, also by SIGKILL, as a request to stop.

    The kernel tells of that end by SIGCONT: of all signals that can be caught, only this one reaches a process that
    SIGSTOP holds.
    """
    if number := os.environ.get(SUPERVISOR):
        signal.signal(signal.SIGCONT, lambda *_: _stop_without(int(number)))
        end_with_parent(int(number), signal.SIGCONT)


def _stop_without(supervisor: int) -> None:
    # Else somebody has let a stopped process go on, or it was asked before, and a second request would end it unsaved.
    if os.getppid() != supervisor and not requested:
        os.kill(os.getpid(), signal.SIGTERM)


class StopRequest:
    """Set by SIGTERM, SIGUSR1 or SIGHUP; the ranks agree on it at a step's end.

    A second signal ends the process at once, but for SIGHUP, which a terminal that closes sends more than once.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        catch_stop_signals(self._receive)
        if requested:  # before this, or in this moment, when it is known already
            self.signal = signal.Signals(requested[0]).name

    def _receive(self, number: int, _frame: object) -> None:
        if self.signal and number == signal.SIGHUP:
            return
        if self.signal:
            os._exit(128 + number)
        self.signal = signal.Signals(number).name
