"""What protocols of the field vary beside model and data: seeds, schedules and how they end, control data."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from upscale.settings import AUTO, Auto, Count, CountOrZero, Section

Control: TypeAlias = Literal["none", "shuffled", "pairs"]


class SeedsConfig(Section):
    """Each null is `run.seed`. That of the tests is always the same, whatever is said here: every run is measured on
    the same strings."""

    weights: CountOrZero | None = None
    """Of random weights: all at first, those of parts that begin anew, and how `init` samples and shuffles."""
    rows: CountOrZero | None = None
    """Of what synthetic sources write."""
    order: CountOrZero | None = None
    """Of which rows of the buffer, or which windows of the corpora, are trained on when."""


class DecayConfig(Section):
    shape: Literal["cosine", "linear"] = "cosine"
    """How the rate falls from its peak to its end."""
    over: Count | Auto = AUTO
    """Instances before schedule.instances in which it falls; auto: all after the warm-up."""
    to: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """The rate at the end as a share of what it would be without."""


class BatchConfig(Section):
    start: Count = 16
    """Rows in a global batch at first; rounded up to a multiple of data.lanes."""
    end: Count = 500
    """Rows in a global batch from `to` on."""
    from_: Annotated[CountOrZero, Field(alias="from")] = 500_000
    """Instances at which the batch starts to grow."""
    to: CountOrZero = 1_000_000
    """Instances at which it has grown."""


class ScheduleConfig(Section):
    instances: Count = 20_000_000
    """Rows to train on in all."""
    warmup: CountOrZero = 1_600_000
    """Instances of linear learning-rate warm-up."""
    halve_every: CountOrZero = 10_000_000
    """Instances in which the learning rate halves after the warm-up; 0: constant."""
    wake_every: CountOrZero = 10_000
    """Instances between the wakings of two groups of blocks; 0: all awake from the start."""
    decay: DecayConfig | None = None
    """How the learning rate ends: beside halving, it falls towards `instances`; null: it does not end."""
    batch: BatchConfig = BatchConfig()


def problems_of_protocols(sections: dict) -> list[tuple[str, str]]:
    """A batch that shrinks, a decay that has no room, and control data of what is no synthetic row."""
    found: list[tuple[str, str]] = []
    schedule, data = sections.get("schedule"), sections.get("data")
    if schedule:
        batch = schedule.batch
        if batch.to < batch.from_:
            found.append(("schedule.batch.to", f"{batch.to} is before schedule.batch.from = {batch.from_}"))
        if batch.end < batch.start:
            found.append(("schedule.batch.end", f"{batch.end} is below schedule.batch.start = {batch.start}"))
    if schedule and schedule.decay:
        room = schedule.instances - schedule.warmup
        if room < 1:
            message = f"the warm-up of {schedule.warmup:,} instances leaves none of {schedule.instances:,} to decay in"
            found.append(("schedule.decay", f"{message}: lower schedule.warmup, or leave the decay out"))
        elif schedule.decay.over != AUTO and schedule.decay.over > room:
            message = f"{schedule.decay.over:,} is more than the {room:,} instances after the warm-up"
            found.append(("schedule.decay.over", f"{message}: give at most these, or auto"))
    if data and data.kind == "corpus" and data.control != "none":
        message = f"{data.control} is for synthetic rows only; leave it out with data.kind=corpus"
        found.append(("data.control", message))
    return found
