"""Time in collectives, from torch's profiler over one training step.

Timers around the calls would say little: collectives run beside the computation, on a stream or in gloo's threads. The
profiler knows when each was under way on this rank, waiting for slower ranks included. That step is profiled after the
timed ones, because profiling slows it down.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

Interval = tuple[float, float]


def measure(step: Callable[[], object], device: torch.device) -> dict[str, float | None]:
    """Seconds of one step during which a collective was under way on this rank and, on a GPU, of these the seconds in
    which nothing else computed; on a CPU that cannot be told and is None."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CUDA] if on_gpu else []
    with profile(activities=[ProfilerActivity.CPU, *activities]) as watched:
        begin = time.perf_counter()
        step()
        if on_gpu:
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - begin
    collectives: list[tuple[float, float]] = []
    others: list[tuple[float, float]] = []
    for event in watched.events():
        interval = event.time_range.start / 1e6, event.time_range.end / 1e6
        if on_gpu and event.device_type == DeviceType.CUDA:
            (collectives if event.name.startswith("nccl") else others).append(interval)
        elif not on_gpu and event.name.startswith("gloo:"):
            collectives.append(interval)
    under_way = union(collectives)
    return {
        "under_way_seconds": length(under_way),
        "exposed_seconds": length(under_way) - length(overlap(under_way, union(others))) if on_gpu else None,
        "profiled_step_seconds": seconds,
    }


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same times as disjoint intervals in order."""
    joined: list[Interval] = []
    for begin, end in sorted(intervals):
        if joined and begin <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((begin, end))
    return joined


def overlap(one: list[Interval], other: list[Interval]) -> list[Interval]:
    """The times in both of two lists of disjoint intervals in order."""
    found, left, right = [], 0, 0
    while left < len(one) and right < len(other):
        begin, end = max(one[left][0], other[right][0]), min(one[left][1], other[right][1])
        if begin < end:
            found.append((begin, end))
        if one[left][1] < other[right][1]:
            left += 1
        else:
            right += 1
    return found


def length(intervals: Iterable[Interval]) -> float:
    return sum(end - begin for begin, end in intervals)
