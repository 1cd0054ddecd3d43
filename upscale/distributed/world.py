"""The ranks of one run: one `World` from any launcher. Every collective of the project goes through it."""

from __future__ import annotations

import datetime
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from upscale.distributed import rendezvous
from upscale.distributed.placement import Placement, placement
from upscale.errors import LaunchError
from upscale.machine import accelerator, cores

COLLECTIVE_TIMEOUT_SECONDS = 600
FAREWELL_SECONDS = 5

T = TypeVar("T")


class World:
    """The ranks of one run and the few collectives they need.

    Attributes: `rank`, `size`, `device` (torch.device), `launcher` (how the world was found).
    """

    store: dist.Store
    timeout: datetime.timedelta
    decisions: dist.ProcessGroup | None = None
    """What `any_later` is carried by: a group of its own, since its answers are under way beside other collectives."""

    def __init__(
        self, rank: int, size: int, device: torch.device, launcher: str, group: dist.ProcessGroup | None = None
    ):
        self.rank, self.size, self.device, self.launcher, self.group = rank, size, device, launcher, group

    @classmethod
    def single(cls, device: torch.device | str = "cpu") -> World:
        """A world of one that needs no process group."""
        return cls(0, 1, torch.device(device), "python")

    @classmethod
    def join(
        cls, environment: Mapping[str, str] | None = None, timeout_seconds: float = COLLECTIVE_TIMEOUT_SECONDS
    ) -> World:
        """Find the world and start its process group: NCCL with GPUs, gloo without.

        A collective that a rank does not answer within `timeout_seconds` fails on the others.

        Raises LaunchError for an incomplete launch and when a node has more ranks than GPUs.
        """
        environment = os.environ if environment is None else environment
        found = placement(environment)
        accelerator.let_segments_grow()
        device, backend = _device(found, environment)
        timeout = datetime.timedelta(seconds=timeout_seconds)
        # DeepSpeed and torch read these from the environment; Slurm sets its own names only. On a GPU LOCAL_RANK is the
        # number that torch.cuda.set_device takes, on which DeepSpeed calls it: 0 where each task sees its own only.
        local_rank = found.local_rank if device.index is None else device.index
        os.environ.update(RANK=str(found.rank), WORLD_SIZE=str(found.size), LOCAL_RANK=str(local_rank))
        store: dist.Store = dist.HashStore()
        if found.size > 1:
            os.environ.update(MASTER_ADDR=found.address, MASTER_PORT=str(found.port))
            store = _meet(found, timeout)
        dist.init_process_group(backend, store=store, rank=found.rank, world_size=found.size, timeout=timeout)
        world = cls(found.rank, found.size, device, found.launcher)
        world.store, world.timeout = dist.PrefixStore("upscale", store), timeout
        if found.size > 1:
            world.decisions = dist.new_group(backend="gloo", timeout=timeout)
        cores.set_share(cores.share(world.gather_objects(cores.allowance()), world.rank))
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(cores.of_this_rank())
        return world

    def beside(self) -> World:
        """The same ranks with a gloo group of their own: a thread's collectives must not mix with the loop's."""
        group = dist.new_group(backend="gloo", timeout=self.timeout) if self.size > 1 else None
        return World(self.rank, self.size, torch.device("cpu"), self.launcher, group)

    def silent_ranks(self) -> list[int]:
        """Called by a rank whose collective failed: the ranks that do not say the same within a few seconds.

        They have died or hang. An empty list when everyone answers; rank 0, which keeps the store, when nobody can ask.
        """
        if self.size == 1:
            return []
        answers: list[list[int]] = []
        # In a thread of its own: where rank 0 hangs its store does not answer, and the store's time-outs do not hold.
        asking = threading.Thread(target=lambda: answers.append(self._ask_the_others()), name="farewell", daemon=True)
        asking.start()
        asking.join(2 * FAREWELL_SECONDS)
        return answers[0] if answers else [0]

    def _ask_the_others(self) -> list[int]:
        try:
            self.store.set_timeout(datetime.timedelta(seconds=FAREWELL_SECONDS))
            self.store.set(f"lost/{self.rank}", b"1")
            deadline = time.monotonic() + FAREWELL_SECONDS
            silent = [rank for rank in range(self.size) if rank != self.rank]
            while silent and time.monotonic() < deadline:
                silent = [rank for rank in silent if not self.store.check([f"lost/{rank}"])]
                time.sleep(0.1)
            if self.rank == 0 and len(silent) < self.size - 1:
                time.sleep(1)  # the store ends with this process, and the others still read from it
            return silent
        except (RuntimeError, OSError):
            return [0]

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The elementwise sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def all_reduce_max(self, value: float) -> float:
        """The largest of every rank's number."""
        return self.all_reduce_maxima([value])[0]

    def all_reduce_min(self, value: float) -> float:
        """The least of every rank's number."""
        return -self.all_reduce_max(-value)

    def all_reduce_maxima(self, values: Sequence[float]) -> list[float]:
        """The largest of every rank's numbers, place by place."""
        # On the CPU, where gloo carries it: deciding something must not wait for the GPU.
        tensor = torch.tensor(values, dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.group)
        return tensor.tolist()

    def any(self, flag: bool) -> bool:
        """True on every rank if it is true on one: the form of every decision the ranks must share."""
        return self.all_reduce_max(float(flag)) > 0

    def any_later(self, flag: bool) -> Callable[[], bool]:
        """As `any`, without waiting for the other ranks now: what it returns waits for the answer and gives it."""
        if self.size == 1:
            return lambda: flag
        tensor = torch.tensor(float(flag))
        work = dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.decisions or self.group, async_op=True)

        def answer() -> bool:
            work.wait()
            return tensor.item() > 0

        return answer

    def gather_objects(self, item: object) -> list:
        """Every rank's object, in rank order, on every rank."""
        if self.size == 1:
            return [item]
        items: list = [None] * self.size
        dist.all_gather_object(items, item, group=self.group)
        return items

    def broadcast_object(self, item: T) -> T:
        """Rank 0's object on every rank."""
        if self.size == 1:
            return item
        holder = [item]
        dist.broadcast_object_list(holder, src=0, group=self.group)
        return holder[0]

    def barrier(self) -> None:
        if self.size > 1:
            self.all_reduce_max(0.0)


def _device(found: Placement, environment: Mapping[str, str]) -> tuple[torch.device, str]:
    if accelerator.device_type({**os.environ, **environment}) == "cpu":
        return torch.device("cpu"), "gloo"
    visible = torch.cuda.device_count()
    # One task per GPU with its own CUDA_VISIBLE_DEVICES sees a single device, whatever its local rank.
    index = 0 if visible == 1 and found.launcher == "srun" else found.local_rank
    if index >= visible:
        raise LaunchError(
            f"local rank {found.local_rank} has no GPU: this node shows {visible}. Start at most {visible} ranks on it."
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index), "cpu:gloo,cuda:nccl"


def _meet(found: Placement, timeout: datetime.timedelta) -> dist.Store:
    """The store through which the ranks find each other."""
    if found.ports and found.rank == 0:
        return rendezvous.host(found.ports, found.meeting, found.size, timeout)
    if found.ports:
        return rendezvous.find(found.address, found.ports, found.meeting, timeout)
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise LaunchError(
            f"rank 0 cannot listen on MASTER_PORT={found.port}: another program has it. Start again with another port "
            "(torchrun and deepspeed: --master_port)."
        ) from None
    return store
