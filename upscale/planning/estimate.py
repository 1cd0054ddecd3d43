"""Seconds, GPU hours and fit of a config on a cluster, and which engine to choose there."""

from __future__ import annotations

import math
from dataclasses import dataclass

from upscale import schedule
from upscale.config import AUTO, Config
from upscale.config import schema as config_schema
from upscale.model.costs import flops_per_token, parameters
from upscale.planning import memory
from upscale.planning.communication import Cluster, Traffic, traffic

CHECKPOINT_BANDWIDTH = 1e9
"""Bytes per second that one rank writes to a parallel file system."""
RECOMPUTING = {"none": 1.0, "selective": 1.05, "full": 4 / 3}
"""What computing takes longer by: one forward pass more is exact, that of norms, ReLU and dropout alone is assumed."""
TIE = 1.05
"""Run times closer than this are equal: the estimate is no better, and overlap is never perfect."""


@dataclass(frozen=True)
class Estimate:
    """One way to compute a config's full batch on a cluster; `micro_batch` 0 means that it does not fit."""

    config: Config
    cluster: Cluster
    states: dict[str, int]
    micro_batch: int
    passes: int
    global_batch: int
    rows_of_busiest_rank: int
    activation_bytes: float
    rank_bytes: float
    traffic: Traffic
    compute_seconds: float
    optimizer_seconds: float
    run_compute_seconds: float

    @property
    def fits(self) -> bool:
        return self.micro_batch > 0

    @property
    def exposed_seconds(self) -> float:
        """Communication that computing does not hide, per step."""
        return self.traffic.serial_seconds + max(0.0, self.traffic.hidden_seconds - self.compute_seconds)

    @property
    def step_seconds(self) -> float:
        """A step at the full batch with all blocks awake."""
        return self.compute_seconds + self.optimizer_seconds + self.exposed_seconds

    @property
    def tokens_per_second(self) -> float:
        return self.global_batch * self.config.model.context / self.step_seconds

    @property
    def model_flops_utilization(self) -> float:
        """Of the sheet peak, after everything that is not computing."""
        flops = flops_per_token(self.config.model, self.config.model.depth) * self.tokens_per_second
        return flops / (self.cluster.ranks * self.cluster.device.peak_flops)

    @property
    def balance(self) -> float:
        """Share of the ranks' rows that are real: lanes and rows do not always divide evenly."""
        return self.global_batch / (self.cluster.ranks * self.rows_of_busiest_rank)

    @property
    def run_seconds(self) -> float:
        """The whole schedule, with its smaller batches and sleeping blocks."""
        steps, _ = schedule.planned_end(self.config.schedule, self.config.data.lanes)
        return self.run_compute_seconds / self.balance + steps * (self.optimizer_seconds + self.exposed_seconds)

    @property
    def gpu_hours(self) -> float:
        return self.run_seconds * self.cluster.ranks / 3600

    @property
    def checkpoint_bytes(self) -> float:
        """Float32 weights and the optimizer's states."""
        return 4.0 * (parameters(self.config.model) + memory.state_numbers(self.config))

    @property
    def checkpoint_seconds(self) -> float:
        return self.checkpoint_bytes / self.cluster.ranks / CHECKPOINT_BANDWIDTH


def run_flops(config: Config) -> float:
    """The whole schedule's floating-point operations, with sleeping blocks left out while they sleep."""
    wakes, model = config.schedule, config.model
    total, begin = 0.0, 0
    while begin < wakes.instances:
        active = schedule.active_blocks(begin, wakes, model)
        asleep = active < model.depth and wakes.wake_every
        end = min((begin // wakes.wake_every + 1) * wakes.wake_every if asleep else wakes.instances, wakes.instances)
        total += (end - begin) * model.context * flops_per_token(model, active)
        begin = end
    return total


def estimate(config: Config, cluster: Cluster, utilization: float) -> Estimate:
    """What `config` (resolved) costs when matrix products run at `utilization` of the device's peak.

    Computing takes the FLOPs of the rank with most rows at that rate, longer by RECOMPUTING under checkpointing, but
    at least what reading the weights for each pass takes. The optimizer reads gradients, and reads and writes weights
    and its states: 28 bytes a parameter for AdamW; the products of one that has some run at that rate, on every rank.
    """
    model, device, ranks = config.model, cluster.device, cluster.ranks
    lanes = config.data.lanes
    batch = schedule.full_batch_size(config.schedule, lanes)
    busiest = batch // lanes * math.ceil(lanes / ranks)
    states = memory.state_bytes(config, ranks)
    fitting = memory.largest_micro_batch(config, ranks, device.memory_bytes)
    wanted = busiest if config.engine.micro_batch == AUTO else config.engine.micro_batch
    micro_batch = 0 if fitting == 0 else min(wanted, busiest)
    if config.engine.micro_batch == AUTO:
        micro_batch = min(micro_batch, fitting)
    elif micro_batch > fitting:
        micro_batch = 0
    passes = math.ceil(busiest / max(1, micro_batch))
    rate = utilization * device.peak_flops / RECOMPUTING[model.checkpointing]
    flops = busiest * model.context * flops_per_token(model, model.depth)
    total = parameters(model)
    steps, _ = schedule.planned_end(config.schedule, lanes)
    # Each pass reads float32 weights, writes bfloat16 copies and reads those, forward and backward.
    weight_seconds = passes * 16 * total / device.memory_bandwidth
    moved_bytes = 4 * (3 * total + 2 * memory.state_numbers(config))
    return Estimate(
        config=config,
        cluster=cluster,
        states=states,
        micro_batch=micro_batch,
        passes=passes,
        global_batch=batch,
        rows_of_busiest_rank=busiest,
        activation_bytes=memory.activation_bytes(config, max(1, micro_batch)),
        rank_bytes=memory.peak_bytes(config, ranks, max(1, micro_batch), passes),
        traffic=traffic(config, cluster, passes),
        compute_seconds=max(flops / rate, weight_seconds),
        optimizer_seconds=moved_bytes / memory.shard_ranks(config, ranks) / device.memory_bandwidth
        + memory.optimizer_flops(config) / (utilization * device.peak_flops),
        run_compute_seconds=max(run_flops(config) / ranks / rate, steps * weight_seconds),
    )


def with_engine(config: Config, name: str, stage: int, shard: int | str, checkpointing: str) -> Config:
    engine = {"name": name, "zero_stage": stage, "shard_ranks": shard}
    return config.with_values(engine=engine, model={"checkpointing": checkpointing})


def alternatives(config: Config, cluster: Cluster, utilization: float) -> list[Estimate]:
    """Every engine and stage that the optimizer allows, under each activation checkpointing, at the largest micro-batch
    that fits.

    Those that fit come first, fastest first; where several take as long within TIE, the first of this order: stages 0
    and 1, which shard less, then FSDP2, then stage 2, which reduces all of the gradient in every pass, then stage 3,
    which is not compiled.
    """
    ways = [("deepspeed", stage, AUTO) for stage in range(2)]
    if cluster.nodes > 1 and cluster.gpus_per_node > 1:
        ways.append(("fsdp", 1, cluster.gpus_per_node))
    ways += [("fsdp", 1, AUTO), ("deepspeed", 2, AUTO), ("deepspeed", 3, AUTO)]
    configs = [with_engine(config, *way, mode) for mode in ("none", "selective", "full") for way in ways]
    found = [
        estimate(one, cluster, utilization) for one in configs if config_schema.can_step(one.optimizer, one.engine)
    ]
    fitting = [one for one in found if one.fits]
    fastest = min((one.run_seconds for one in fitting), default=0.0)
    order = {id(one): place for place, one in enumerate(found)}
    return sorted(
        found,
        key=lambda one: (not one.fits, max(one.run_seconds, fastest * TIE) if one.fits else 0, order[id(one)]),
    )
