"""Mapping a function over items on several processes, in order and in bounded memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from upscale.errors import RunError
from upscale.machine import cores
from upscale.machine.parent import end_with_parent

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_PROCESSES = 8
PREFETCHED_ITEMS = 2
"""Items for each process that are taken before the first of their results is read."""


def usable_processes() -> int:
    """As many as this process may use cores, at most MOST_PROCESSES."""
    return min(cores.of_this_rank(), MOST_PROCESSES)


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], processes: int
) -> Generator[Result, None, None]:
    """`map(function, items)` on so many processes; one is this one. `function` must be importable.

    Raises what the function raises, and RunError when a process was killed. Items are taken only as results are read.
    """
    if processes == 1:
        yield from map(function, items)
        return
    spawn = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(processes, spawn, initializer=_begin_worker, initargs=(os.getpid(),))
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(executor.submit(function, item))
            if len(waiting) >= PREFETCHED_ITEMS * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise RunError(
            "a worker process was killed, perhaps for want of memory. Try again with fewer --processes."
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)


def _begin_worker(parent: int) -> None:
    """Ctrl-C is the parent's to handle; a parent that was killed takes its workers with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(parent, signal.SIGKILL)
