"""Training steps of a config, measured through its own engine, lanes and model.

A step is measured as the schedule ends: the full batch, every block awake. It is the step of `upscale train` (rows
drawn, passed through the model by `upscale.training.train_step`, applied by the engine) without logging, evaluating
and saving. Parts are timed where they happen, on a GPU by events in its stream, so timing adds no wait but one
at the step's end.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from upscale import engines, planning, schedule
from upscale.bench import communication, fitting, operators, plain
from upscale.bench.machine import summary
from upscale.config import Config
from upscale.data import lanes, prefetch, training_rows
from upscale.distributed.world import World
from upscale.machine.timing import Stopwatch, peak_memory_gib
from upscale.training import train_step

ALL_AWAKE = 2**31
PARTS = ("generate", "forward", "backward", "optimizer")


class Timed:
    """An engine that keeps the time of what the trainer asks of it."""

    def __init__(self, engine: engines.Trains, device: torch.device):
        self.engine, self.train_mode = engine, engine.train_mode
        self.forward, self.backward_watch, self.optimizer = (Stopwatch(device) for _ in range(3))

    def logits(self, *arguments, **keywords) -> torch.Tensor:
        with self.forward.running():
            return self.engine.logits(*arguments, **keywords)

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        with self.backward_watch.running():
            self.engine.backward(loss, last)

    def step(self, learning_rate_factor: float, awake_groups: int) -> engines.StepReport:
        with self.optimizer.running():
            return self.engine.step(learning_rate_factor, awake_groups)


class Contender:
    """One way to train: an engine, and the steps it has taken."""

    def __init__(self, config: Config, world: World, engine: engines.Trains, micro_batch: int):
        self.config, self.world, self.timed, self.number = config, world, Timed(engine, world.device), 0
        owned = lanes.owned_lanes(config.data.lanes, world.rank, world.size)
        self.microbatches = train_step.Microbatches(config, world, self.timed, owned[0], micro_batch)
        self.batch = schedule.full_batch_size(config.schedule, config.data.lanes)

    def step(self, rows: torch.Tensor) -> None:
        self.microbatches.backpropagate(rows, self.batch, self.config.model.depth, self.number)
        self.timed.step(1.0, ALL_AWAKE)
        self.number += 1

    def seconds(self, rows: torch.Tensor) -> float:
        """Of one step on these rows, which are there already."""
        wait_for(self.world.device)
        begin = time.perf_counter()
        self.step(rows)
        wait_for(self.world.device)
        return time.perf_counter() - begin


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    config: Config,
    world: World,
    rows: Callable[..., training_rows.Rows],
    local_ranks: int,
    steps: int,
    warm_up: int,
    baseline: bool,
    by_operator: bool,
    say: Callable[[str], None],
) -> dict:
    """The figures of a resolved config in this world, the same on every rank.

    `baseline` also measures plain PyTorch and the paper's step, in turns with the engine, in a world of one; rows are
    then drawn between the steps, as with data.ahead=none. `by_operator` also profiles one step more.
    """
    micro_batch, found_by = fitting.micro_batch(config, world, local_ranks)
    say(f"micro-batches of {micro_batch} rows ({found_by}); building the model")
    owned = lanes.owned_lanes(config.data.lanes, world.rank, world.size)
    source = prefetch.prefetched(config, rows, owned, world.device)
    _, engine = train_step.build(config, world)
    engine_step = Contender(config, world, engine, micro_batch)
    beside: dict[str, Contender] = {}
    if baseline:
        for name, made in (("plain PyTorch", plain.without_engine), ("paper's step", plain.paper_step)):
            beside[name] = Contender(config, world, made(config, world), micro_batch)
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(world.device)

    per_lane = engine_step.batch // config.data.lanes
    generating, timed = Stopwatch(world.device), engine_step.timed
    watches = dict(zip(PARTS, (generating, timed.forward, timed.backward_watch, timed.optimizer), strict=True))
    taken: list[dict[str, float]] = []
    others: dict[str, list[float]] = {name: [] for name in beside}
    for turn in range(warm_up + steps):
        world.barrier()
        wait_for(world.device)
        begin = time.perf_counter()
        with generating.running():
            # A draw under way beside the baselines would slow those down.
            more = turn + 1 < warm_up + steps and not beside
            drawn = source.draw(per_lane, per_lane if more else None)
        engine_step.step(drawn)
        wait_for(world.device)
        total = time.perf_counter() - begin
        mine = {"step": total, **{name: watch.take() for name, watch in watches.items()}, "draw": source.take_seconds()}
        if turn >= warm_up:
            taken.append(mine)
        for name, contender in beside.items():
            seconds = contender.seconds(drawn)
            if turn >= warm_up:
                others[name].append(seconds)
        say(f"step {turn + 1} of {warm_up + steps}: {total:.3f} s{'' if turn >= warm_up else ', not counted'}")
    source.close()
    peak = world.all_reduce_max(peak_memory_gib(world.device))
    collectives = communication.measure(lambda: engine_step.step(drawn), world.device) if world.size > 1 else None
    table = None
    if by_operator:
        dtype = torch.bfloat16 if config.engine.in_bfloat16 else torch.float32
        table = operators.measure(lambda: engine_step.step(drawn), dtype, world.device)
    everyone = world.gather_objects((taken, collectives))
    return {
        **description(config, world, micro_batch, found_by),
        "steps": steps,
        **figures(config, world, [part for part, _ in everyone]),
        "communication": together([part for _, part in everyone]) if collectives else None,
        "by_operator": table,
        "peak_memory_gib": peak,
        "beside": {name: beside_figures(mine, taken) for name, mine in others.items()},
    }


def description(config: Config, world: World, micro_batch: int, found_by: str) -> dict:
    return {
        "world_size": world.size,
        "launcher": world.launcher,
        "parameters": planning.parameters(config.model),
        "active_blocks": config.model.depth,
        "compiled": train_step.compiled(config, world.device),
        "global_batch": schedule.full_batch_size(config.schedule, config.data.lanes),
        "rows_per_rank": train_step.most_rows(config, world.size),
        "micro_batch": micro_batch,
        "micro_batch_found_by": found_by,
    }


def figures(config: Config, world: World, everyone: list[list[dict[str, float]]]) -> dict:
    """Medians with lowest and highest over the steps; `everyone` has every rank's seconds of every step.

    A step takes as long as on its slowest rank, a part as long as on the ranks' mean. `generate` is what a step waits
    for its rows; rows a second are those of the draws themselves, on the slowest rank, beside a step or not.
    """
    merged = []
    for ranks in zip(*everyone, strict=True):
        means = {name: statistics.fmean(rank[name] for rank in ranks) for name in PARTS}
        total = max(rank["step"] for rank in ranks)
        slowest = max(rank["draw"] for rank in ranks)
        merged.append({"step": total, **means, "rest": max(0.0, total - sum(means.values())), "slowest": slowest})
    batch = schedule.full_batch_size(config.schedule, config.data.lanes)
    tokens = batch * config.model.context
    flops = planning.flops_per_token(config.model, config.model.depth) * tokens / world.size
    peak = planning.peak_flops(world.device)
    rate = [flops / one["step"] for one in merged]
    computing = [flops / (one["forward"] + one["backward"]) for one in merged]
    return {
        "seconds": {name: summary([one[name] for one in merged]) for name in ("step", *PARTS, "rest")},
        "generator_rows_per_second": summary([batch / one["slowest"] for one in merged]),
        "tokens_per_second": summary([tokens / one["step"] for one in merged]),
        "tokens_per_second_per_device": summary([tokens / one["step"] / world.size for one in merged]),
        "model_flops_per_second_per_device": summary(rate),
        "peak_flops": peak,
        "model_flops_utilization": statistics.median(rate) / peak if peak else None,
        "computing_flops_utilization": statistics.median(computing) / peak if peak else None,
    }


def together(everyone: list[dict[str, Any]]) -> dict[str, float | None]:
    """The mean over ranks of what each saw of the profiled step."""
    return {
        name: None if everyone[0][name] is None else statistics.fmean(rank[name] for rank in everyone)
        for name in everyone[0]
    }


def beside_figures(others: list[float], taken: list[dict[str, float]]) -> dict:
    """Another way's seconds of a step without generating, and how many times as long it takes as the engine's."""
    own = [one["step"] - one["generate"] for one in taken]
    ratios = [other / mine for other, mine in zip(others, own, strict=True)]
    return {"seconds": summary(others), "times_the_engine": summary(ratios)}
