"""How many cores a process may use: what its affinity and its control group leave it, shared with the other ranks."""

from __future__ import annotations

import math
import os
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Allowance:
    """The cores one process may run on, on which machine, and how many of them its control group grants at a time."""

    machine: str
    cores: frozenset[int]
    quota: float = math.inf


def allowance() -> Allowance:
    """This process's own."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return Allowance(platform.node(), frozenset(cores), quota())


def quota(root: Path = CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> float:
    """Cores that the control groups of this process grant at a time, the least of a group and those around it;
    infinite without a limit."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return math.inf
    found = math.inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            found = min([found, *(_limit(group) for group in _upwards(root, path))])
        elif "cpu" in controllers.split(","):
            found = min([found, *(_old_limit(group) for group in _upwards(root / "cpu", path))])
    return found


def _upwards(root: Path, path: str) -> list[Path]:
    """The folder of a group and of every group around it; inside a container the path may not exist, its root does."""
    folder = root / path.lstrip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]


def _limit(group: Path) -> float:
    """From cpu.max, "QUOTA PERIOD" or "max PERIOD", in microseconds."""
    try:
        allowed, period = (group / "cpu.max").read_text().split()
        return math.inf if allowed == "max" else int(allowed) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def _old_limit(group: Path) -> float:
    try:
        allowed, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return allowed / period if allowed > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def share(everyone: Sequence[Allowance], rank: int) -> int:
    """Whole cores for one of several ranks, at least one: a core that k of them may use counts 1/k for each.

    So ranks that a launcher binds to cores of their own keep them all, and ranks on the same cores divide them. The
    quota of a control group is divided among the ranks of the machine.
    """
    mine = everyone[rank]
    neighbours = [other for other in everyone if other.machine == mine.machine]
    users = Counter(core for other in neighbours for core in other.cores)
    own = sum(1 / users[core] for core in mine.cores)
    return max(1, int(min(own, mine.quota / len(neighbours)) + 1e-9))


_mine = 0


def set_share(number: int) -> None:
    """Called once the ranks of a machine know of each other."""
    global _mine
    _mine = number


def of_this_rank() -> int:
    """This process's share, or, where no world was joined, all that it may use."""
    return _mine or share([allowance()], 0)
