"""The ordered map against the built-in one, and processes that die against the rules, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from upscale.corpora.work import parallel
from upscale.errors import RunError, UserError

WAIT_SECONDS = 60


def square(number: int) -> int:
    time.sleep(0.01 * (number % 3))  # so that results come out of order
    return number * number


def refuse(number: int) -> int:
    if number == 5:
        raise UserError("five")
    return number


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("processes", [1, 3])
def test_results_come_in_order(processes):
    assert list(parallel.ordered_map(square, range(20), processes)) == [number * number for number in range(20)]


@pytest.mark.parametrize("processes", [1, 2])
def test_items_are_taken_only_as_results_are_read(processes):
    """So that memory is bounded: at most PREFETCHED_ITEMS a process are out."""
    taken = []
    results = parallel.ordered_map(square, (taken.append(number) or number for number in range(1000)), processes)
    for number in range(8):
        assert next(results) == number * number
        assert len(taken) <= number + 1 + parallel.PREFETCHED_ITEMS * processes
    results.close()


@pytest.mark.parametrize("processes", [1, 2])
def test_errors_reach_the_caller(processes):
    seen = []
    with pytest.raises(UserError, match="five"):
        for number in parallel.ordered_map(refuse, range(10), processes):
            seen.append(number)
    assert seen == [0, 1, 2, 3, 4]


def test_a_killed_worker_is_an_error():
    with pytest.raises(RunError, match="a worker process was killed.*--processes"):
        list(parallel.ordered_map(die, range(3), 2))


def test_workers_follow_a_killed_parent():
    """Against /proc: the parent is killed while its workers are idle or busy, and they end too."""
    program = """if True:
        import multiprocessing, time
        from upscale.corpora.work import parallel
        results = parallel.ordered_map(abs, range(100), 2)
        next(results)
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
        time.sleep(600)
    """
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    workers = [int(number) for number in parent.stdout.readline().split()]
    assert workers
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + WAIT_SECONDS
    while (left := [worker for worker in workers if _runs(worker)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def _runs(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
