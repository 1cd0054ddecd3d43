"""The bytes a rank sends in one optimizer step, and how long a ring takes for them.

n ranks that reduce-scatter or gather b bytes send b (n - 1) / n each (Thakur et al. 2005); an all-reduce is both. NCCL
runs one ring through every network card of a node, so the slowest link carries what all cards of a node carry together.
"""

from __future__ import annotations

from dataclasses import dataclass

from upscale import optim
from upscale.config import Config
from upscale.engines.buckets import overlaps
from upscale.machine.gpus import Device
from upscale.model.costs import matrix_parameters, parameters
from upscale.planning.memory import LIVE_PARAMETERS, shard_ranks

LINK_EFFICIENCY = 0.8
"""Share of a link's nominal bandwidth that large NCCL messages reach."""


@dataclass(frozen=True)
class Cluster:
    """Equal nodes: `network_bandwidth` in bytes per second and GPU, one way, to other nodes."""

    nodes: int
    gpus_per_node: int
    device: Device
    network_bandwidth: float

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus_per_node

    def ring_seconds(self, sent_bytes: float, ranks: int) -> float:
        """Seconds in which each of `ranks` neighbouring ranks sends `sent_bytes` around their ring."""
        if ranks <= 1:
            return 0.0
        bandwidth = self.device.link_bandwidth
        if ranks > self.gpus_per_node:
            network = self.gpus_per_node * self.network_bandwidth
            bandwidth = min(bandwidth, network) if self.gpus_per_node > 1 else network
        return sent_bytes / (bandwidth * LINK_EFFICIENCY)

    def replica_seconds(self, sent_bytes: float) -> float:
        """The same between ranks of equal place in different nodes: each has its own card's bandwidth."""
        return sent_bytes / (self.network_bandwidth * LINK_EFFICIENCY)


@dataclass(frozen=True)
class Traffic:
    """Per step and rank: bytes sent, seconds that can hide behind computing, and seconds that cannot."""

    sent_bytes: float
    hidden_seconds: float
    serial_seconds: float


def traffic(config: Config, cluster: Cluster, passes: int) -> Traffic:
    """What a step of `passes` micro-batches sends, all blocks awake.

    DeepSpeed reduces in float32. Stages 1 and 2 reduce by sums over all ranks, which send twice what scattering would,
    stage 2 in every pass; what they gather after the optimizer's step is float32. Stage 3 scatters and gathers in every
    pass, twice but for what the backward pass needs again before LIVE_PARAMETERS others have gone by. With
    `engine.overlap` reducing hides, and at stage 3 gathering, too; what stages 1 and 2 gather never does, nor what an
    optimizer of whole matrices gathers in its step. FSDP2 gathers and scatters in every pass; between copies of the
    shards gradients are summed in the last pass only. FSDP2 and stage 3 gather matrices in bfloat16.
    """
    ranks, total = cluster.ranks, parameters(config.model)
    gathered_bytes = 2 if config.engine.in_bfloat16 else 4
    if config.engine.name == "deepspeed":
        one_way = total * (ranks - 1) / ranks
        stage = config.engine.zero_stage
        reduced = 4 * {0: 2, 1: 2, 2: 2 * passes, 3: passes}[stage]
        again = 1 - min(1, LIVE_PARAMETERS / 2 / total)
        gathered = {0: 0, 1: 4, 2: 4, 3: (1 + again) * passes * gathered_bytes}[stage]
        behind = reduced + (gathered if stage == 3 else 0) if overlaps(config) else 0
        hidden, serial = (
            cluster.ring_seconds(count * one_way, ranks) for count in (behind, reduced + gathered - behind)
        )
        return Traffic((reduced + gathered) * one_way, hidden, serial)
    shards = shard_ranks(config, ranks)
    within = total * (shards - 1) / shards
    gathers = 2 * passes if config.engine.reshard else 1
    sent = within * (gathers * gathered_bytes + 4 * passes)
    seconds = cluster.ring_seconds(sent, shards)
    replicas = ranks // shards
    between = 2 * 4.0 * total / shards * (replicas - 1) / replicas
    gathered = 0.0
    if optim.KINDS[config.optimizer.kind].whole_matrices:
        gathered = 4.0 * matrix_parameters(config.model) * (shards - 1) / shards
    return Traffic(
        sent + between + gathered,
        seconds + cluster.replica_seconds(between),
        cluster.ring_seconds(gathered, shards),
    )
