"""Up to which learning rate training is stable at each width: the edge, and what announces it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from upscale.report.runs import Run
from upscale.study.grid import GridPlan, by_rate

SMOOTHED = 5
"""Logged steps whose mean loss is looked at: one batch is not a rise."""
RISE = 0.3
"""Bits above the lowest so far from which on a loss has risen."""
SIGNALS = {
    "attention_logit_maximum": "largest attention logit",
    "activation_rms": "largest activation (root mean square)",
    "update_ratio_maximum": "largest update beside its weights",
}


@dataclass(frozen=True)
class Trial:
    """One training; losses in bits per byte."""

    first: float
    """Of the first logged step, before an update where every step is logged."""
    final: float
    """NaN where a loss or gradient was not finite, or a step was skipped for it."""
    rise: float
    """By how much the smoothed loss ever was above the lowest one before, the first loss among them."""
    signals: dict[str, float]
    """The largest of each of SIGNALS in the run; NaN where it was not logged."""

    @property
    def stable(self) -> bool:
        return math.isfinite(self.final) and self.rise <= RISE and self.final <= self.first

    @property
    def reason(self) -> str:
        """Why it is not stable."""
        if not math.isfinite(self.final):
            return "not finite"
        return f"rises by {self.rise:.2f}" if self.rise > RISE else "ends above its start"


def trial(run: Run) -> Trial:
    """What a run's logged steps say; it is as exact as `tracking.log_every` is small."""
    losses = run.column("loss_bits_per_byte")
    skipped = numpy.nanmax(numpy.nan_to_num(run.column("skipped_steps")))
    width = min(SMOOTHED, len(losses))
    smooth = numpy.convolve(losses, numpy.ones(width) / width, mode="valid")
    lowest = numpy.minimum.accumulate([losses[0], *smooth])[:-1]
    finite = numpy.isfinite(losses).all()
    rise = max(0.0, float((smooth - lowest).max())) if finite else math.inf
    final = run.final_loss if finite and not skipped else math.nan
    signals = {name: _largest(run.column(name)) for name in SIGNALS}
    return Trial(float(losses[0]), final, rise, signals)


def _largest(values: numpy.ndarray) -> float:
    known = values[numpy.isfinite(values)]
    return float(known.max()) if len(known) else math.nan


@dataclass(frozen=True)
class Edge:
    """One width of one series: its trials by log2 of the rate, rising; a list of seeds each."""

    name: str
    width: int
    trials: dict[float, list[Trial]]

    @property
    def stable(self) -> list[float]:
        """The rates up to the first one at which a seed is not stable."""
        found = []
        for rate, seeds in self.trials.items():
            if not all(one.stable for one in seeds):
                break
            found.append(rate)
        return found

    @property
    def unstable(self) -> float:
        """The first rate at which a seed is not stable; NaN where there is none among those tried."""
        stable = self.stable
        beyond = [rate for rate in self.trials if rate not in stable]
        return beyond[0] if beyond else math.nan

    def final(self, rate: float) -> float:
        """Mean over seeds; NaN where one diverged."""
        return sum(one.final for one in self.trials[rate]) / len(self.trials[rate])

    @property
    def best(self) -> tuple[float, float]:
        """(rate, final loss) of the stable rate whose loss ends lowest; NaN where none is stable."""
        return min(
            ((rate, self.final(rate)) for rate in self.stable), key=lambda pair: pair[1], default=(math.nan,) * 2
        )

    @property
    def sensitivity(self) -> float:
        """The mean over all trainings of the final loss, at most that at the start, above the lowest; Wortsman 2023."""
        every = [one for seeds in self.trials.values() for one in seeds]
        ends = [min(one.first, one.final) if math.isfinite(one.final) else one.first for one in every]
        return sum(ends) / len(ends) - self.best[1]

    def signal(self, name: str, rate: float) -> float:
        """The largest over seeds; NaN where it is not known."""
        return _largest(numpy.array([one.signals[name] for one in self.trials.get(rate, [])], float))


def edges(plan: GridPlan, points: dict[str, str]) -> list[Edge]:
    """One for each width of a series that has a finished training, smallest width first."""
    found = []
    for name, trained in plan.finished("width", points).items():
        trials = {rate: [trial(run) for run in runs.values()] for rate, runs in by_rate(trained).items()}
        found.append(Edge(name, trained[0][0].config.model.width, dict(sorted(trials.items()))))
    return sorted(found, key=lambda edge: edge.width)


def edge_text(edge: Edge) -> str:
    """Where the edge is, in words."""
    if not edge.stable:
        return f"below {next(iter(edge.trials)):g}"
    if math.isnan(edge.unstable):
        return f"beyond {edge.stable[-1]:g}"
    return f"{edge.stable[-1]:g} to {edge.unstable:g}"


def reasons(seeds: Sequence[Trial]) -> str:
    """Why trainings are not stable, each reason once."""
    return ", ".join(dict.fromkeys(one.reason for one in seeds if not one.stable))
