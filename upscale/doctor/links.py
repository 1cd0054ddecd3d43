"""Links: the all-reduce bandwidth inside each node, between nodes and over all ranks, as training uses them.

Bus bandwidth, as NCCL's tests define it: bytes x 2 (n - 1) / n over the seconds, which does not depend on how many
ranks take part and is compared with what one link carries. Nodes are measured in pairs, each with a few partners: a
slow node is slow with all of them, a slow link with one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

from upscale.distributed.world import World
from upscale.doctor.base import SLOW_SHARE, Check, Record, Session, flag_slow, with_problem
from upscale.machine.gpus import data_sheet

TRIAL_BYTES = 1 << 20
LARGEST_BYTES = {"cuda": 256 << 20, "cpu": 32 << 20}
SECONDS_EACH, REPEATS = 0.1, 5
MOST_PARTNERS = 4
LEAST_SHARE_OF_LINK = 0.25
"""Of the data sheet's link, for an all-reduce inside a node: far less means that NCCL does not use NVLink."""
INSIDE, OVER_ALL, BETWEEN = "all-reduce inside the node", "all-reduce over all ranks", "link between"
NODE_ADVICE = (
    "Look at its network (ibstat, ethtool) and at NCCL_SOCKET_IFNAME, and leave the node out (sbatch --exclude=NODE)"
)
INSIDE_ADVICE = "Look at `nvidia-smi topo -m` and `nvidia-smi nvlink --status`, and leave the node out"


class Links(Check):
    kind = "links"

    def measure(self, session: Session) -> list[Record]:
        world, nodes = session.world, session.ranks_of_nodes
        if world.size == 1:
            return []
        found = [self.record(session, OVER_ALL, bus_bytes_per_second(world) / 1e9, "GB/s")]
        # All groups first: making one waits for every rank.
        inside = [self._group(session, ranks) for ranks in nodes.values() if len(ranks) > 1]
        world.barrier()
        for group in inside:
            if group is None:
                continue
            rate = bus_bytes_per_second(group)
            found.append(self.record(session, INSIDE, rate / 1e9, "GB/s", self._without_nvlink(session, rate)))
        leaders = {node: ranks[0] for node, ranks in nodes.items()}
        for pairs in rounds(list(nodes)):
            groups = [(pair, self._group(session, [leaders[node] for node in pair])) for pair in pairs]
            world.barrier()
            for pair, group in groups:
                if group:
                    name = f"{BETWEEN} {' and '.join(pair)}"
                    rate = bus_bytes_per_second(group) / 1e9
                    found.extend([self.record(session, name, rate, "GB/s")] if group.is_main else [])
        return found

    def judge(self, records: Sequence[Record], session: Session) -> list[Record]:
        found = flag_slow(records, [INSIDE], session.device.type, INSIDE_ADVICE)
        return judge_pairs(found, list(session.ranks_of_nodes), SLOW_SHARE[session.device.type])

    def _group(self, session: Session, ranks: list[int]) -> World | None:
        """A world of some ranks, for those in it. Every rank calls this, as torch asks."""
        world = session.world
        group = dist.new_group(ranks)
        if world.rank not in ranks:
            return None
        return World(ranks.index(world.rank), len(ranks), world.device, world.launcher, group)

    def _without_nvlink(self, session: Session, rate: float) -> str | None:
        sheet = data_sheet(session.device)
        if sheet is None or rate >= LEAST_SHARE_OF_LINK * sheet.link_bandwidth:
            return None
        share = rate / sheet.link_bandwidth
        return f"{share:.0%} of what a link of this GPU carries: NCCL seems not to use it. {INSIDE_ADVICE}"


def rounds(nodes: list[str]) -> list[list[tuple[str, str]]]:
    """At most MOST_PARTNERS rounds of disjoint pairs, no pair twice; with an odd number one node waits in each."""
    players: list[str | None] = [*nodes, *([None] if len(nodes) % 2 else [])]
    found = []
    for _ in range(min(len(players) - 1, MOST_PARTNERS)):
        half = len(players) // 2
        pairs = zip(players[:half], reversed(players[half:]), strict=True)
        found.append([(one, other) for one, other in pairs if one and other])
        players = [players[0], players[-1], *players[1:-1]]
    return [pairs for pairs in found if pairs]


def bus_bytes_per_second(world: World) -> float:
    """Bus bandwidth of an all-reduce over these ranks; every one of them calls it. The slowest rank's time counts."""
    trial = _seconds(world, TRIAL_BYTES, 1)
    size = int(min(LARGEST_BYTES[world.device.type], max(TRIAL_BYTES, TRIAL_BYTES * SECONDS_EACH / trial)))
    size -= size % 4
    return size * 2 * (world.size - 1) / world.size / _seconds(world, size, REPEATS)


def _seconds(world: World, size: int, repeats: int) -> float:
    """The least of several times of one all-reduce, after one that is not counted; equal on all ranks."""
    tensor = torch.zeros(size // 4, dtype=torch.float32, device=world.device)
    taken = []
    for _ in range(repeats + 1):
        world.barrier()
        begin = time.perf_counter()
        world.all_reduce_sum(tensor)
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        taken.append(time.perf_counter() - begin)
    return max(world.all_reduce_max(min(taken[1:])), 1e-9)


def judge_pairs(records: Sequence[Record], nodes: list[str], share: float) -> list[Record]:
    """The records of pairs with slow nodes and slow links named: a node by its best pair, a link beside good nodes."""
    ends = {
        one.name: one.name.removeprefix(f"{BETWEEN} ").split(" and ") for one in records if one.name.startswith(BETWEEN)
    }
    rates = {one.name: one.number for one in records if one.name in ends}
    best = {node: max((rates[name] for name, pair in ends.items() if node in pair), default=0.0) for node in nodes}
    if len(rates) < 2:
        return list(records)
    median = statistics.median_high(best.values())
    slow = {node for node in nodes if best[node] < share * median}
    found = []
    for one in records:
        pair = ends.get(one.name, ())
        if pair and one.number < share * median:
            beside = f"{one.number / median:.0%} of {median:.4g} GB/s, the median of the nodes' best links"
            named = [node for node in pair if node in slow]
            text = (
                f"{beside}: node {' and '.join(named)} is slow with every partner"
                if named
                else f"{beside}: this link is slow"
            )
            one = with_problem(one, f"{text}. {NODE_ADVICE}")
        found.append(one)
    return found
