"""Finding the world: every launcher's variables, and every launch that must be refused."""

from __future__ import annotations

import os
import stat
import threading
from types import SimpleNamespace

import pytest
import torch

from tests.ranks import run_ranks
from upscale.distributed import world as world_module
from upscale.distributed.world import World, placement
from upscale.errors import LaunchError

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "n1",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_JOB_ID": "12345",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "n7",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}


def where(environment: dict) -> tuple:
    found = placement(environment)
    return found.rank, found.size, found.local_rank, found.local_size, found.address, found.port


def without(environment: dict, *names: str) -> dict:
    return {key: value for key, value in environment.items() if key not in names}


def test_a_single_process_is_a_world_of_one():
    assert where({})[:3] == (0, 1, 0)


def test_torchrun_and_deepspeed():
    assert where(TORCHRUN) == (3, 4, 1, 2, "n1", 29500)
    assert where(without(TORCHRUN, "LOCAL_WORLD_SIZE")) == (3, 4, 1, None, "n1", 29500)


def test_srun_sets_its_own_names_and_the_port_follows_the_job():
    assert where(SRUN) == (3, 4, 1, 2, "n7", 22345)
    assert where({**SRUN, "MASTER_ADDR": "n9", "MASTER_PORT": "7"})[4:] == ("n9", 7)


def test_srun_expands_a_node_list_with_scontrol(tmp_path, monkeypatch):
    """Against a stand-in that answers as scontrol of Slurm 22.05 does."""
    fake = tmp_path / "scontrol"
    fake.write_text('#!/bin/sh\n[ "$1 $2 $3" = "show hostnames n[3-5]" ] && printf "n3\\nn4\\nn5\\n"\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert where({**SRUN, "SLURM_STEP_NODELIST": "n[3-5]"})[4] == "n3"


def test_a_world_smaller_than_the_allocation_must_be_asked_for():
    assert where({**SRUN, "SLURM_GPUS_ON_NODE": "2"})[:2] == (3, 4)
    assert where({**SRUN, "SLURM_GPUS_ON_NODE": "8", "LAUNCH_RANKS_PER_NODE": "2"})[:2] == (3, 4)
    assert where({"SLURM_JOB_ID": "1", "SLURM_GPUS_ON_NODE": "8", "LAUNCH_RANKS_PER_NODE": "1"})[:2] == (0, 1)


def test_torchrun_inside_an_srun_task_is_torchruns_world():
    assert where({**SRUN, "SLURM_NTASKS": "2", "SLURM_PROCID": "1", **TORCHRUN, "TORCHELASTIC_RUN_ID": "x"})[:2] == (
        3,
        4,
    )


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (without(TORCHRUN, "WORLD_SIZE"), "set RANK, MASTER_ADDR, MASTER_PORT but not WORLD_SIZE"),
        (without(TORCHRUN, "MASTER_ADDR"), "but not MASTER_ADDR"),
        (without(TORCHRUN, "LOCAL_RANK"), "WORLD_SIZE=4 but LOCAL_RANK is not set"),
        ({**TORCHRUN, "RANK": "4"}, "rank 4 is outside the world of 4"),
        ({**TORCHRUN, "RANK": "x"}, "RANK='x' is not a whole number"),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"}, "started once inside a Slurm allocation of 8 tasks"),
        (
            {"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8"},
            "of 2 nodes, 8 GPUs a node, which",
        ),
        ({**SRUN, "SLURM_GPUS_ON_NODE": "8"}, "2 tasks on this node, which has 8 GPUs"),
        ({**SRUN, "WORLD_SIZE": "1", "RANK": "0"}, "WORLD_SIZE=1, but Slurm started task 3 of 4"),
        (without(SRUN, "SLURM_NTASKS"), "SLURM_NTASKS is missing"),
        (without(SRUN, "SLURM_STEP_NODELIST"), "without SLURM_STEP_NODELIST"),
        ({**SRUN, "SLURM_STEP_NODELIST": "n[1-2]", "PATH": "/nowhere"}, "could not expand the node list 'n[1-2]'"),
    ],
)
def test_incomplete_or_contradicting_launches_are_refused(environment, message, monkeypatch):
    monkeypatch.setenv("PATH", environment.get("PATH", os.environ["PATH"]))
    with pytest.raises(LaunchError) as raised:
        placement(environment)
    assert message in str(raised.value)


def collectives(world: World) -> tuple:
    import torch

    total = world.sum(torch.full((2,), float(world.rank))).tolist()
    beside = world.beside().gather_objects(world.rank * 10)
    return (
        total,
        world.any(world.rank == 2),
        world.any(False),
        world.maximum(world.rank),
        beside,
        world.broadcast_object(world.rank),
    )


def test_collectives():
    assert run_ranks(collectives, 3) == [([3.0, 3.0], True, False, 2.0, [0, 10, 20], 0)] * 3


def test_a_world_of_one_needs_no_process_group():
    world = World.single()
    assert (world.any(True), world.maximum(3.0), world.gather_objects("x"), world.broadcast_object(4)) == (
        True,
        3.0,
        ["x"],
        4,
    )
    world.barrier()


def test_a_first_rank_that_hangs_does_not_keep_those_who_ask_for_the_lost(monkeypatch):
    """A store that accepts a request and never answers, as that of a stopped process does."""
    monkeypatch.setattr(world_module, "FAREWELL_SECONDS", 0.5)
    world = World(1, 3, torch.device("cpu"), "test")
    world.store = SimpleNamespace(set_timeout=lambda _: None, set=lambda *_: threading.Event().wait())
    assert world.silent_ranks() == [0]
    answering = SimpleNamespace(set_timeout=lambda _: None, set=lambda *_: None, check=lambda keys: keys != ["lost/2"])
    world.store = answering
    assert world.silent_ranks() == [2]
