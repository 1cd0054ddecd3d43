"""Seconds spent in a part of the loop, without waiting for the GPU until somebody asks, and peak memory."""

from __future__ import annotations

import resource
import time
from contextlib import contextmanager

import torch


class Stopwatch:
    """Sums the time of `with watch:` blocks: the wall clock on a CPU, CUDA events on a GPU."""

    def __init__(self, device: torch.device):
        self.on_gpu = device.type == "cuda"
        self.seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self):
        if self.on_gpu:
            pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            pair[0].record()
            yield
            pair[1].record()
            self._events.append(pair)
        else:
            begin = time.perf_counter()
            yield
            self.seconds += time.perf_counter() - begin

    def take(self) -> float:
        """The seconds since the last call; waits for the GPU to reach the last block's end."""
        for begin, end in self._events:
            end.synchronize()
            self.seconds += begin.elapsed_time(end) / 1000
        self._events.clear()
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def peak_memory_gib(device: torch.device) -> float:
    """The most memory this process has held: allocated on its GPU, or resident without one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
