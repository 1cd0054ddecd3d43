"""What every check is made of: what it knows of the run, what it records, and how ranks are compared."""

from __future__ import annotations

import dataclasses
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from upscale.config import Config
from upscale.distributed.world import World

OK, PROBLEM = "ok", "problem"
SLOW_SHARE = {"cuda": 0.85, "cpu": 0.5}
"""Of the median: what is slower is named. GPUs of one kind differ by a few hundredths; cores are shared with others."""
MEASURE_SECONDS = 0.3
FEWEST_REPEATS = 3


@dataclass(frozen=True)
class Record:
    """One thing found on one rank. `verdict` is `ok` or `problem`; `advice` says what a problem is and what to do."""

    check: str
    name: str
    rank: int
    node: str
    value: float | str | None
    unit: str = ""
    verdict: str = OK
    advice: str = ""

    @property
    def number(self) -> float:
        """The value of a record that was measured; TypeError for one that is a text or missing."""
        if not isinstance(self.value, (int, float)):
            raise TypeError(f"{self.check}: {self.name} is {self.value!r}, no number")
        return self.value


@dataclass(frozen=True)
class Session:
    """The run that is examined, as one of its ranks sees it: a config with its precision settled, and the world.

    Every rank makes one at the same time.
    """

    config: Config
    world: World
    nodes: list[str] = field(default_factory=list)
    """The node of every rank, in rank order."""

    @classmethod
    def begin(cls, config: Config, world: World) -> Session:
        """A session of this rank; every rank calls this together."""
        return cls(config, world, world.gather_objects(platform.node()))

    @property
    def node(self) -> str:
        return self.nodes[self.world.rank]

    @property
    def device(self) -> torch.device:
        return self.world.device

    @property
    def ranks_of_nodes(self) -> dict[str, list[int]]:
        """The ranks of each node, nodes in the order of their first ranks."""
        found: dict[str, list[int]] = {}
        for rank, node in enumerate(self.nodes):
            found.setdefault(node, []).append(rank)
        return found

    @property
    def leads_its_node(self) -> bool:
        """Whether this is the first rank of its node."""
        return self.ranks_of_nodes[self.node][0] == self.world.rank


class Check:
    """One kind of check. It keeps nothing between calls."""

    kind: ClassVar[str]
    """Its name in the report."""

    def measure(self, session: Session) -> list[Record]:
        """What this rank finds. All ranks call it together, so it may contain collectives, the same on every rank."""
        raise NotImplementedError

    def judge(self, records: Sequence[Record], session: Session) -> list[Record]:
        """The records of all ranks with the verdicts that need all of them; on rank 0 only."""
        return list(records)

    def record(
        self, session: Session, name: str, value: float | str | None, unit: str = "", problem: str | None = None
    ) -> Record:
        """A record of this rank; with `problem`, which says what to do, its verdict is `problem`."""
        verdict = OK if problem is None else PROBLEM
        return Record(self.kind, name, session.world.rank, session.node, value, unit, verdict, problem or "")


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """The least time of a call on this device, of at least FEWEST_REPEATS after one that is not counted, and of as many
    as MEASURE_SECONDS allow."""
    call()
    _wait_for(device)
    taken: list[float] = []
    begun = time.perf_counter()
    while len(taken) < FEWEST_REPEATS or time.perf_counter() - begun < MEASURE_SECONDS:
        begin = time.perf_counter()
        call()
        _wait_for(device)
        taken.append(time.perf_counter() - begin)
    return max(min(taken), 1e-9)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def with_problem(record: Record, advice: str) -> Record:
    """The record as a problem; one that was a problem before keeps what it said."""
    return record if record.verdict == PROBLEM else dataclasses.replace(record, verdict=PROBLEM, advice=advice)


def flag_slow(records: Sequence[Record], names: Iterable[str], device_type: str, advice: str) -> list[Record]:
    """The records, those of `names` that lie far below the median of the same name as problems.

    Of an even number the median is the upper one of the two in the middle, so that the slow one of two is found.
    """
    share, found, names = SLOW_SHARE[device_type], list(records), set(names)
    for name in names:
        values = [one.number for one in records if one.name == name and one.value is not None]
        if len(values) < 2:
            continue
        median = statistics.median_high(values)
        for place, one in enumerate(found):
            if one.name == name and one.value is not None and one.number < share * median:
                text = f"{one.number / median:.0%} of the median, {median:.4g} {one.unit}. {advice}"
                found[place] = with_problem(one, text)
    return found


def flag_unequal(records: Sequence[Record], advice: dict[str, str]) -> list[Record]:
    """The records, those whose name is a key of `advice` and whose value is not what most ranks have as problems."""
    found = list(records)
    for name, text in advice.items():
        values = Counter(one.value for one in records if one.name == name)
        if len(values) < 2:
            continue
        (common, count), *_ = values.most_common()
        for place, one in enumerate(found):
            if one.name == name and one.value != common:
                found[place] = with_problem(one, f"{count} of {values.total()} ranks have {common}. {text}")
    return found
