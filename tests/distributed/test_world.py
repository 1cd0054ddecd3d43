"""Finding the world: every launcher's variables, and every launch that must be refused."""

from __future__ import annotations

import os
import stat
import threading
from types import SimpleNamespace

import pytest
import torch

from tests.ranks import run_ranks
from upscale.distributed import placement as placement_module
from upscale.distributed import world as world_module
from upscale.distributed.placement import placement
from upscale.distributed.world import World
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
    assert placement({**SRUN, "SLURM_STEP_ID": "1"}).port != placement(SRUN).port


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


# A shell of `srun --pty --gpus=2 bash`.
SHELL = {
    **{"SLURM_JOB_ID": "5", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1"},
    **{"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_GPUS_ON_NODE": "2"},
    **{"SLURM_STEP_NODELIST": "n1", "CUDA_VISIBLE_DEVICES": "0,1"},
}
# What deepspeed and launch/local.sh set, beside others.
TWO_RANKS = {
    **{"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"},
    "MASTER_PORT": "29500",
}


def test_launchers_typed_into_a_shell_of_srun_make_their_own_world():
    expected = (1, 2, 1, 2, "127.0.0.1", 29500)
    assert where({**SHELL, **TWO_RANKS}) == expected
    assert where({**SHELL, **TWO_RANKS, "TORCHELASTIC_RUN_ID": "x"}) == expected
    one = {**TWO_RANKS, "WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    assert where({**SHELL, **one})[:4] == (0, 1, 0, 1)
    # deepspeed --no_ssh, started by srun once on each of two nodes with two GPUs
    assert where({**SRUN, "SLURM_NTASKS": "2", "SLURM_PROCID": "1", **TWO_RANKS, "WORLD_SIZE": "4", "RANK": "3"})[
        :3
    ] == (
        *(3, 4),
        1,
    )


def test_a_process_typed_into_a_shell_of_srun_chooses_one_gpu_or_is_told_what_to_type():
    with pytest.raises(LaunchError) as raised:
        placement(SHELL)
    told = str(raised.value)
    assert "torchrun --nproc_per_node=2 upscale/train.py" in told and "LAUNCH_RANKS_PER_NODE=1" in told
    assert where({**SHELL, "LAUNCH_RANKS_PER_NODE": "1"})[:2] == (0, 1)
    assert where({**SHELL, "CUDA_VISIBLE_DEVICES": "1"})[:2] == (0, 1)
    assert where({**SHELL, "CUDA_VISIBLE_DEVICES": ""})[:2] == (0, 1)
    # so that `upscale bench --ranks 2` starts its ranks there as anywhere else
    assert not placement_module.is_launched(SHELL) and not placement_module.is_launched({})
    assert placement_module.is_launched(SRUN) and placement_module.is_launched(TORCHRUN)


@pytest.mark.parametrize("name", placement_module.WHOLE_NUMBERS)
@pytest.mark.parametrize("given", [TORCHRUN, SRUN, {"SLURM_JOB_ID": "1"}], ids=["torchrun", "srun", "allocation"])
def test_a_launcher_variable_that_is_no_number_is_named(given, name):
    with pytest.raises(LaunchError, match=f"{name}='two' is not a whole number"):
        placement({**given, name: "two"})


def test_on_a_gpu_local_rank_is_the_number_that_deepspeed_sets(monkeypatch):
    """Task 1 of a node, one visible GPU a task as --gpus-per-task makes it, then all GPUs visible."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_arguments, **_options: None)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"):
        monkeypatch.setenv(name, "unset")
    task = {**SRUN, "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "1"}
    for tasks in ({}, {"SLURM_STEP_TASKS_PER_NODE": ""}):
        for visible, expected in ((1, 0), (2, 1)):
            monkeypatch.setattr(torch.cuda, "device_count", lambda visible=visible: visible)
            world = World.join({**task, **tasks})
            assert world.device == torch.device("cuda", expected) and chosen[-1] == expected
            assert os.environ["LOCAL_RANK"] == str(expected)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (without(TORCHRUN, "WORLD_SIZE"), "set RANK, MASTER_ADDR, MASTER_PORT but not WORLD_SIZE"),
        (without(TORCHRUN, "MASTER_ADDR"), "but not MASTER_ADDR"),
        (without(TORCHRUN, "LOCAL_RANK"), "WORLD_SIZE=4 but LOCAL_RANK is not set"),
        ({**TORCHRUN, "RANK": "4"}, "rank 4 is outside the world of 4"),
        ({**TORCHRUN, "LOCAL_RANK": "-1"}, "LOCAL_RANK counts from 0"),
        ({**TORCHRUN, "MASTER_PORT": "70000"}, "MASTER_PORT=70000 is not a port"),
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

    total = world.all_reduce_sum(torch.full((2,), float(world.rank))).tolist()
    beside = world.beside().gather_objects(world.rank * 10)
    return (
        total,
        world.any(world.rank == 2),
        world.any(False),
        world.all_reduce_max(world.rank),
        beside,
        world.broadcast_object(world.rank),
    )


def test_collectives():
    assert run_ranks(collectives, 3) == [([3.0, 3.0], True, False, 2.0, [0, 10, 20], 0)] * 3


def test_a_world_of_one_needs_no_process_group():
    world = World.single()
    assert (world.any(True), world.all_reduce_max(3.0), world.gather_objects("x"), world.broadcast_object(4)) == (
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
