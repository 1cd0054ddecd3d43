"""Who am I, and how many are we: one `Placement` from any launcher's variables, before a process group exists."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from upscale.distributed import rendezvous
from upscale.errors import LaunchError

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
WHOLE_NUMBERS = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"),
    *("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"),
    *("SLURM_GPUS_ON_NODE", "SLURM_JOB_NUM_NODES"),
)


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
