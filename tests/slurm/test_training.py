"""The shipped scripts with the real trainer on a real Slurm, against one run without Slurm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.slurm.cluster import USER
from tests.slurm.conftest import Clone, started_nodes
from tests.test_train import losses, train
from tests.tiny import TINY

# Steps of some milliseconds: enough of them that signals and faults arrive in the middle.
LENGTH = ["schedule.instances=4800", "checkpoint.every_steps=10", "engine.micro_batch=12"]
FSDP = "engine.name=fsdp"
"""Its ranks start sooner than DeepSpeed's, for tests that start them several times."""


def command(clone: Clone, run: str) -> list[str]:
    timeout = f"engine.timeout_seconds={clone.cluster.seconds(60)}"
    return ["slurm/pretrain_w1024.sh", *TINY, *LENGTH, timeout, f"run.name={run}"]


@pytest.fixture(scope="module")
def without_slurm(tmp_path_factory) -> list[float]:
    directory: Path = tmp_path_factory.mktemp("reference") / "run"
    train(directory, *LENGTH)
    return losses(directory)


def check(clone: Clone, run: str, reference: list[float]) -> None:
    """Every step once, with the loss of the run without Slurm."""
    rows = clone.rows(run)
    assert [row["step"] for row in rows] == list(range(1, len(reference) + 1))
    assert [row["loss_bits_per_byte"] for row in rows] == pytest.approx(reference, rel=1e-4)


def test_two_nodes_two_ranks_each(real_clone, without_slurm):
    job = real_clone.submit("--nodes=2", *command(real_clone, "a"), "run.steps=20")
    real_clone.finish(job)
    assert real_clone.worlds("a") == [4]
    check(real_clone, "a", without_slurm[:20])


def test_a_stop_and_a_requeue_change_nothing(real_clone, without_slurm):
    """USR1 to the batch script alone, as Slurm sends it near the limit; ranks that train hear it at once."""
    heard_at_once = {"LAUNCH_RANKS_PER_NODE": "1", "LAUNCH_QUIET_SECONDS": "0"}
    job = real_clone.submit("--nodes=2", *command(real_clone, "b"), FSDP, **heard_at_once)
    real_clone.reaches("b", 20, job)
    real_clone.command("scancel", "--batch", "--signal=USR1", job)
    found = real_clone.finish(job)
    assert found["Restarts"] == "1" and real_clone.events("b") == ["start", "requeued", "start", "finished"]
    assert "resumed from" in (real_clone.folder / "runs/b/log.txt").read_text()
    check(real_clone, "b", without_slurm)


def test_a_dead_node_costs_some_steps_and_changes_nothing(real_clone, cluster, without_slurm):
    job = real_clone.submit("--nodes=1-2", *command(real_clone, "e"), FSDP, LAUNCH_RANKS_PER_NODE="1")
    real_clone.reaches("e", 20, job)
    cluster.kill("n2")
    found = real_clone.finish(job)
    assert found["Restarts"] == "0" and real_clone.events("e") == ["start", "lost", "start", "finished"]
    assert started_nodes(real_clone.log(job)) == ["n1,n2", "n1"]
    assert {row["world_size"] for row in real_clone.rows("e")} == {1, 2}
    check(real_clone, "e", without_slurm)


def test_an_ordinary_user_with_a_run_directory_on_another_file_system(users_real_clone, cluster, without_slurm):
    """A home folder that cannot be written to, and a run directory in the node's memory."""
    home = Path(users_real_clone.environment["HOME"])
    assert not home.exists() or home.owner() != USER
    pid = cluster.processes["n1"].pid
    node = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
    words = [*command(users_real_clone, "v"), "run.dir=/dev/shm/runs/v", "run.steps=4", FSDP]
    job = users_real_clone.submit("--nodes=1", "--nodelist=n1", *words, LAUNCH_RANKS_PER_NODE="1")
    users_real_clone.finish(job)
    directory = Path(f"/proc/{node}/root/dev/shm/runs/v")
    assert directory.stat().st_dev != users_real_clone.folder.stat().st_dev
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss_bits_per_byte"] for row in rows] == pytest.approx(without_slurm[:4], rel=1e-4)
    assert (directory / "metrics.jsonl").owner() == USER


def test_a_world_unlike_the_allocation_is_refused_before_a_model_is_built(real_clone):
    """`srun` by hand with fewer tasks than GPUs, and no `srun` at all."""
    script = real_clone.folder / "by_hand.sh"
    training = f"python -m upscale.train {' '.join(TINY)} run.name=h"
    script.write_text(f"#!/bin/bash\nsrun --nodes=2 --ntasks-per-node=1 {training}\n{training}\n")
    job = real_clone.submit("--nodes=2", "--exclusive", "--output=by-hand-%j.log", script)
    real_clone.finish(job, "FAILED")
    log = real_clone.log(job)
    assert "1 task on this node, which has 2 GPUs" in log and "started once inside a Slurm allocation" in log, log
    assert not (real_clone.folder / "runs").exists()
