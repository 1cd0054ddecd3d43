"""Who am I, who are the others: one `World` from any launcher. Every collective of the project goes through it."""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

from upscale.errors import LaunchError

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
COLLECTIVE_TIMEOUT_SECONDS = 600
FAREWELL_SECONDS = 5


@dataclass(frozen=True)
class Placement:
    """Where a launcher put this process, before any process group exists."""

    rank: int
    size: int
    local_rank: int
    local_size: int | None
    address: str
    port: int
    launcher: str


def placement(environment: Mapping[str, str]) -> Placement:
    """Read rank, world size and address from torchrun's, DeepSpeed's or Slurm's variables.

    Raises LaunchError when they are incomplete or disagree with a Slurm allocation: a wrong world must never train.
    """
    given = [name for name in LAUNCHER_VARIABLES if environment.get(name)]
    in_step = "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment
    if in_step:
        found = _slurm_placement(environment)
        for name, value in (("WORLD_SIZE", found.size), ("RANK", found.rank)):
            stated = environment.get(name)
            # torchrun inside `srun` is one Slurm task that starts several ranks; its own world is the true one.
            if stated is not None and int(stated) != value and "TORCHELASTIC_RUN_ID" not in environment:
                raise LaunchError(
                    f"the launcher's world disagrees with the Slurm step: {name}={stated}, but Slurm started task "
                    f"{found.rank} of {found.size}. Unset {name}, or start the ranks with one launcher only."
                )
        if "TORCHELASTIC_RUN_ID" not in environment:
            _refuse_idle_gpus(environment, found)
            return found
    if not given:
        _refuse_lone_process_in_allocation(environment)
        return Placement(0, 1, 0, 1, "127.0.0.1", 0, "python")
    missing = [name for name in LAUNCHER_VARIABLES if name not in given]
    if missing:
        raise LaunchError(
            f"the launcher set {', '.join(given)} but not {', '.join(missing)}. Start with torchrun, deepspeed or "
            "srun, which set all of them, or unset them for a single process."
        )
    local_rank = environment.get("LOCAL_RANK", environment.get("SLURM_LOCALID"))
    size = _whole(environment, "WORLD_SIZE")
    if local_rank is None:
        if size > 1:
            raise LaunchError(
                f"WORLD_SIZE={size} but LOCAL_RANK is not set, so this rank cannot choose its device. "
                "Export LOCAL_RANK (under srun: LOCAL_RANK=$SLURM_LOCALID)."
            )
        local_rank = "0"
    local_size = environment.get("LOCAL_WORLD_SIZE")
    return _checked(
        Placement(
            rank=_whole(environment, "RANK"),
            size=size,
            local_rank=int(local_rank),
            local_size=int(local_size) if local_size else None,
            address=environment["MASTER_ADDR"],
            port=_whole(environment, "MASTER_PORT"),
            launcher="torchrun" if "TORCHELASTIC_RUN_ID" in environment else "environment",
        )
    )


def _whole(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise LaunchError(f"{name}={environment[name]!r} is not a whole number; the launcher sets it.") from None


def _slurm_placement(environment: Mapping[str, str]) -> Placement:
    size = int(environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or 0)
    if size < 1:
        raise LaunchError("inside a Slurm step, but SLURM_NTASKS is missing. Start with `srun --ntasks=N`.")
    address = environment.get("MASTER_ADDR") or _first_host(environment)
    port = environment.get("MASTER_PORT") or 20000 + int(environment.get("SLURM_JOB_ID", "0")) % 10000
    # SLURM_NTASKS_PER_NODE is inherited from sbatch and may be wrong for this step; the step's own count is not.
    tasks = re.match(r"(\d+)", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    return _checked(
        Placement(
            rank=int(environment["SLURM_PROCID"]),
            size=size,
            local_rank=int(environment.get("SLURM_LOCALID", "0")),
            local_size=int(tasks.group(1)) if tasks else None,
            address=address,
            port=int(port),
            launcher="srun",
        )
    )


def _first_host(environment: Mapping[str, str]) -> str:
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if not nodes:
        raise LaunchError(
            "inside a Slurm step without SLURM_STEP_NODELIST, so the first rank's address is unknown. Export "
            "MASTER_ADDR and MASTER_PORT."
        )
    if "[" not in nodes and "," not in nodes:
        return nodes
    try:
        listing = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise LaunchError(
            f"could not expand the node list {nodes!r} with scontrol ({error}). Export MASTER_ADDR."
        ) from None
    return listing.stdout.split()[0]


def _refuse_idle_gpus(environment: Mapping[str, str], found: Placement) -> None:
    gpus, tasks = int(environment.get("SLURM_GPUS_ON_NODE") or 0), found.local_size
    if tasks and tasks < gpus and not environment.get("LAUNCH_RANKS_PER_NODE"):
        raise LaunchError(
            f"Slurm started {tasks} {'task' if tasks == 1 else 'tasks'} on this node, which has {gpus} GPUs in the "
            f"allocation. Start one rank per GPU (srun --ntasks-per-node={gpus}), or say that this world is meant: "
            f"LAUNCH_RANKS_PER_NODE={tasks}."
        )


def _refuse_lone_process_in_allocation(environment: Mapping[str, str]) -> None:
    if "SLURM_JOB_ID" not in environment or "SLURM_STEP_ID" in environment:
        return
    sizes = {"tasks": "SLURM_NTASKS", "nodes": "SLURM_JOB_NUM_NODES", "GPUs a node": "SLURM_GPUS_ON_NODE"}
    several = [f"{count} {unit}" for unit, name in sizes.items() if (count := int(environment.get(name) or 1)) > 1]
    if several and environment.get("LAUNCH_RANKS_PER_NODE") != "1":
        raise LaunchError(
            f"started once inside a Slurm allocation of {', '.join(several)}, which would make a world of one. Start "
            "with `srun python upscale/train.py ...`, or say that one rank is meant: LAUNCH_RANKS_PER_NODE=1."
        )


def _checked(found: Placement) -> Placement:
    if not 0 <= found.rank < found.size:
        raise LaunchError(
            f"rank {found.rank} is outside the world of {found.size}: RANK must be in 0..{found.size - 1}."
        )
    return found


class World:
    """The ranks of one run and the few collectives they need.

    Attributes: `rank`, `size`, `device` (torch.device), `launcher` (how the world was found).
    """

    store: dist.Store
    timeout: datetime.timedelta

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
        found = placement(os.environ if environment is None else environment)
        device, backend = _device(found)
        if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // (found.local_size or found.size)))
        timeout = datetime.timedelta(seconds=timeout_seconds)
        # DeepSpeed and torch read these from the environment; Slurm sets its own names only.
        os.environ.update(RANK=str(found.rank), WORLD_SIZE=str(found.size), LOCAL_RANK=str(found.local_rank))
        store: dist.Store = dist.HashStore()
        if found.size > 1:
            os.environ.update(MASTER_ADDR=found.address, MASTER_PORT=str(found.port))
            store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
        dist.init_process_group(backend, store=store, rank=found.rank, world_size=found.size, timeout=timeout)
        world = cls(found.rank, found.size, device, found.launcher)
        world.store, world.timeout = dist.PrefixStore("upscale", store), timeout
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

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The elementwise sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def maximum(self, value: float) -> float:
        """The largest of every rank's number."""
        if self.size == 1:
            return value
        # On the CPU, where gloo carries it: deciding something must not wait for the GPU.
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.group)
        return tensor.item()

    def any(self, flag: bool) -> bool:
        """True on every rank if it is true on one: the form of every decision the ranks must share."""
        return self.maximum(float(flag)) > 0

    def gather_objects(self, item: object) -> list:
        """Every rank's object, in rank order, on every rank."""
        if self.size == 1:
            return [item]
        items: list = [None] * self.size
        dist.all_gather_object(items, item, group=self.group)
        return items

    def broadcast_object(self, item: object) -> object:
        """Rank 0's object on every rank."""
        if self.size == 1:
            return item
        holder = [item]
        dist.broadcast_object_list(holder, src=0, group=self.group)
        return holder[0]

    def barrier(self) -> None:
        if self.size > 1:
            self.maximum(0.0)


def _device(found: Placement) -> tuple[torch.device, str]:
    if not torch.cuda.is_available():
        return torch.device("cpu"), "gloo"
    visible = torch.cuda.device_count()
    # One task per GPU with its own CUDA_VISIBLE_DEVICES sees a single device, whatever its local rank.
    index = 0 if visible == 1 and (found.local_size or 1) > 1 and found.launcher == "srun" else found.local_rank
    if index >= visible:
        raise LaunchError(
            f"local rank {found.local_rank} has no GPU: this node shows {visible}. Start at most {visible} ranks on it."
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index), "cpu:gloo,cuda:nccl"
