"""What the numbers depend on, and how calls are timed."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch


def seconds(calls: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each call, the calls in turns, after one turn that is not counted."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            wait()
            start = time.perf_counter()
            call()
            wait()
            if turn:
                taken[name].append(time.perf_counter() - start)
    return taken


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def machine(device: torch.device) -> dict[str, object]:
    """What the numbers depend on."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    described = {
        "device": device.type,
        "cpu": names[0] if names else platform.processor(),
        "cpus": len(names) or None,
        "memory_gib": _memory_gib(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch_threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
        described["gpu_memory_gib"] = round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
        described["cuda"] = torch.version.cuda
    return described


def _memory_gib() -> float | None:
    information = Path("/proc/meminfo")
    if not information.exists():
        return None
    return round(int(information.read_text().split("MemTotal:")[1].split()[0]) / 2**20, 1)
