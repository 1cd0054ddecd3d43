"""Who am I, who are the others: one `World` from any launcher. Every collective of the project goes through it."""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from upscale.distributed import rendezvous
from upscale.errors import LaunchError
from upscale.machine import accelerator, cores

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
WHOLE_NUMBERS = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"),
    *("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"),
    *("SLURM_GPUS_ON_NODE", "SLURM_JOB_NUM_NODES"),
)
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
    ports: tuple[int, ...] = ()
    """Where the ranks of a Slurm step look for each other; empty: the launcher has seen to `port`."""
    meeting: str = ""
    """What the ranks of a Slurm step know each other by."""


def placement(environment: Mapping[str, str]) -> Placement:
    """Read rank, world size and address from torchrun's, DeepSpeed's or Slurm's variables.

    Raises LaunchError when they are incomplete or disagree with a Slurm allocation: a wrong world must never train.
    """
    for name in WHOLE_NUMBERS:
        if environment.get(name):
            _whole(environment, name)
    given = [name for name in LAUNCHER_VARIABLES if environment.get(name)]
    in_step = "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment
    if in_step and not _launched_inside_step(environment):
        found = _slurm_placement(environment)
        for name, value in (("WORLD_SIZE", found.size), ("RANK", found.rank)):
            if environment.get(name) and _whole(environment, name) != value:
                raise LaunchError(
                    f"the launcher's world disagrees with the Slurm step: {name}={environment[name]}, but Slurm "
                    f"started task {found.rank} of {found.size}. Unset {name}, or start the ranks with one launcher "
                    "only."
                )
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
    size = _whole(environment, "WORLD_SIZE")
    local_rank = "LOCAL_RANK" if environment.get("LOCAL_RANK") else "SLURM_LOCALID"
    if not environment.get(local_rank) and size > 1:
        raise LaunchError(
            f"WORLD_SIZE={size} but LOCAL_RANK is not set, so this rank cannot choose its device. "
            "Export LOCAL_RANK (under srun: LOCAL_RANK=$SLURM_LOCALID)."
        )
    return _checked(
        Placement(
            rank=_whole(environment, "RANK"),
            size=size,
            local_rank=_whole(environment, local_rank) if environment.get(local_rank) else 0,
            local_size=_whole(environment, "LOCAL_WORLD_SIZE") if environment.get("LOCAL_WORLD_SIZE") else None,
            address=environment["MASTER_ADDR"],
            port=_whole(environment, "MASTER_PORT"),
            launcher="torchrun" if "TORCHELASTIC_RUN_ID" in environment else "environment",
        )
    )


def is_launched(environment: Mapping[str, str]) -> bool:
    """Whether a launcher started this process as one of several ranks; no task of one, such as a shell, is that."""
    return "RANK" in environment or ("SLURM_STEP_ID" in environment and _tasks(environment) != 1)


def _launched_inside_step(environment: Mapping[str, str]) -> bool:
    """Whether another launcher started this rank inside a Slurm task: its world is the true one then.

    So it is where torchrun, deepspeed or launch/local.sh is typed into a shell of `srun --pty`, or started by `srun`
    once a node. Slurm's own tasks cannot make a world that is larger than the step.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        return True
    if not all(environment.get(name) for name in (*LAUNCHER_VARIABLES, "LOCAL_RANK")):
        return False
    tasks = _tasks(environment)
    return tasks == 1 or _whole(environment, "WORLD_SIZE") > tasks


def _whole(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise LaunchError(f"{name}={environment[name]!r} is not a whole number; the launcher sets it.") from None


def _tasks(environment: Mapping[str, str]) -> int:
    """Tasks of this Slurm step; 0 where Slurm does not say."""
    names = [name for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") if environment.get(name)]
    return _whole(environment, names[0]) if names else 0


def _slurm_placement(environment: Mapping[str, str]) -> Placement:
    size = _tasks(environment)
    if size < 1:
        raise LaunchError("inside a Slurm step, but SLURM_NTASKS is missing. Start with `srun --ntasks=N`.")
    address = environment.get("MASTER_ADDR") or _first_host(environment)
    job, step = (int(environment.get(name) or 0) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    given = environment.get("MASTER_PORT")
    ports = (_whole(environment, "MASTER_PORT"),) if given else rendezvous.candidates(job, step)
    # SLURM_NTASKS_PER_NODE is inherited from sbatch and may be wrong for this step; the step's own count is not.
    tasks = re.match(r"(\d+)", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    return _checked(
        Placement(
            rank=_whole(environment, "SLURM_PROCID"),
            size=size,
            local_rank=int(environment.get("SLURM_LOCALID") or 0),
            local_size=int(tasks.group(1)) if tasks else None,
            address=address,
            port=ports[0],
            launcher="srun",
            ports=ports,
            meeting=f"{job}.{step}",
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
    if found.size == 1:
        tasks = 1
        if "CUDA_VISIBLE_DEVICES" in environment:  # a single process may choose one of several GPUs for itself
            gpus = min(gpus, len(environment["CUDA_VISIBLE_DEVICES"].split(",")))
    if tasks and tasks < gpus and not environment.get("LAUNCH_RANKS_PER_NODE"):
        raise LaunchError(
            f"Slurm started {tasks} {'task' if tasks == 1 else 'tasks'} on this node, which has {gpus} GPUs in the "
            f"allocation. Start one rank per GPU (srun --ntasks-per-node={gpus}; in a shell of `srun --pty`: torchrun "
            f"--nproc_per_node={gpus} upscale/train.py ...), or say that this world is meant: "
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
    if found.local_rank < 0 or (found.local_size is not None and found.local_size < 1):
        raise LaunchError(
            f"local rank {found.local_rank} of {found.local_size} on this node: LOCAL_RANK counts from 0, and "
            "LOCAL_WORLD_SIZE from 1; the launcher sets them."
        )
    if found.size > 1 and not all(1 <= port <= 65535 for port in found.ports or (found.port,)):
        raise LaunchError(f"MASTER_PORT={found.port} is not a port: give a number from 1 to 65535.")
    return found


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

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The elementwise sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def maximum(self, value: float) -> float:
        """The largest of every rank's number."""
        return self.maxima([value])[0]

    def minimum(self, value: float) -> float:
        """The least of every rank's number."""
        return -self.maximum(-value)

    def maxima(self, values: Sequence[float]) -> list[float]:
        """The largest of every rank's numbers, place by place."""
        # On the CPU, where gloo carries it: deciding something must not wait for the GPU.
        tensor = torch.tensor(values, dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.group)
        return tensor.tolist()

    def any(self, flag: bool) -> bool:
        """True on every rank if it is true on one: the form of every decision the ranks must share."""
        return self.maximum(float(flag)) > 0

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
