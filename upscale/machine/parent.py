"""Processes that end with the one that started them, however that one ends."""

from __future__ import annotations

import ctypes
import os
import sys

WHEN_THE_PARENT_ENDS = 1  # PR_SET_PDEATHSIG


def end_with_parent(parent: int, number: int) -> None:
    """Have this process sent signal `number` when its parent ends, or now, when process `parent` has left already.

    Only Linux's kernel does; elsewhere only a parent that has left already is noticed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(WHEN_THE_PARENT_ENDS, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)
