"""The shipped scripts on a real Slurm whose nodes, cables and time limits fail, with stand-ins for the ranks."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from pathlib import Path

import pytest

from tests.slurm.cluster import USER, Cluster, wait_until
from tests.slurm.conftest import Clone, overrides, started_nodes

# Once a run has been requeued, the rest of it takes few seconds.
QUICKER = {"STANDIN_STEP_SECONDS_AFTER_A_RESTART": "0.01"}


def steps(clone, run: str) -> list[int]:
    return [row["step"] for row in clone.rows(run)]


def restarts(clone, run: str) -> set[int]:
    return {row["restart"] for row in clone.rows(run)}


def covers(found: list[int], last: int) -> bool:
    """Every step was trained; those after the newest checkpoint of a lost node twice."""
    return sorted(set(found)) == list(range(1, last + 1))


def test_two_nodes_two_ranks_each_from_any_folder(clone):
    job = clone.submit("--nodes=2", "pretrain_w1024.sh", *overrides("a", 12), cwd="slurm")
    clone.finish(job)
    assert steps(clone, "a") == list(range(1, 13))
    assert clone.worlds("a") == [4]
    assert started_nodes(clone.log(job)) == ["n1,n2"]
    assert clone.events("a") == ["start", "finished"]
    assert (clone.folder / "slurm" / f"w1024-{job}.log").exists()


def test_every_template_would_be_accepted(clone):
    for template in sorted((clone.folder / "slurm").glob("[!c]*.sh")):
        if template.name != "study.sh":
            clone.command("sbatch", "--test-only", template)


def test_a_cluster_without_gpus(cluster, tmp_path):
    """The same script, told how many ranks a node runs; untold, it says what to do."""
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as folder,
        Cluster(Path(folder), cluster.pace, nodes=2, gpus=0) as without,
    ):
        clone = Clone(tmp_path, without, standin=True)
        job = clone.submit("--nodes=2", "slurm/pretrain_w1024.sh", *overrides("c", 5))
        clone.finish(job, "FAILED")
        assert "LAUNCH_RANKS_PER_NODE=2" in clone.log(job)
        job = clone.submit("--nodes=2", "slurm/pretrain_w1024.sh", *overrides("c", 5), LAUNCH_RANKS_PER_NODE="2")
        clone.finish(job)
        assert clone.worlds("c") == [4]


def test_near_the_time_limit_it_saves_requeues_and_continues(clone):
    """Slurm's own USR1, which its half-minutely look at the limits sends between 10 and 40 s after a job's start.

    That is at the first look that finds less than the signal's seconds and 30 more left of the limit. On a slow machine
    all of it takes longer in proportion, so that the stand-ins have begun to train by then.
    """
    slower = clone.cluster.seconds(1)
    limits = [f"--time={slower}", f"--signal=B:USR1@{50 * slower - 30}"]
    total = 110 * (slower + 3)  # at 0.1 s each more than fit before the signal
    changes = overrides("b", total, checkpoint__every_steps=10 * total)
    job = clone.submit("--nodes=2", *limits, "slurm/pretrain_w1024.sh", *changes, **QUICKER)
    found = clone.finish(job)
    assert int(found["Restarts"]) >= 1
    assert steps(clone, "b") == list(range(1, total + 1)), "every step once: nothing was lost at the stop"
    assert clone.events("b")[:3] == ["start", "requeued", "start"] and clone.events("b")[-1] == "finished"
    assert "the time limit is near" in clone.log(job) and clone.log(job).count("starting 4 ranks") >= 2


def test_an_operator_requeues(clone):
    """The ranks get SIGTERM and the time to save (KillWait)."""
    job = clone.submit(
        "--nodes=2",
        "slurm/pretrain_w1024.sh",
        *overrides("r", 40, checkpoint__every_steps=1000),
        STANDIN_SAVE_SECONDS="2",
    )
    clone.reaches("r", 8, job)
    clone.command("scontrol", "requeue", job)
    found = clone.finish(job)
    assert found["Restarts"] == "1"
    assert steps(clone, "r") == list(range(1, 41)) and restarts(clone, "r") == {0, 1}


def test_an_urgent_job_pushes_it_aside(clone):
    job = clone.submit(
        "--nodes=3",
        "slurm/pretrain_w1024.sh",
        *overrides("d", 40, checkpoint__every_steps=1000),
        STANDIN_SAVE_SECONDS="2",
    )
    clone.reaches("d", 8, job)
    urgent = clone.submit("--partition=urgent", "--nodes=3", "--wrap=sleep 2", "--output=/dev/null")
    clone.finish(urgent)
    found = clone.finish(job)
    assert found["Restarts"] == "1"
    assert steps(clone, "d") == list(range(1, 41)) and restarts(clone, "d") == {0, 1}


@pytest.mark.slow
def test_a_dead_node_costs_a_step_on_the_others(clone, cluster):
    job = clone.submit("--nodes=1-3", "slurm/pretrain_w1024.sh", *overrides("e", 80))
    clone.reaches("e", 8, job)
    cluster.kill("n2")
    found = clone.finish(job)
    assert found["Restarts"] == "0"
    assert clone.worlds("e") == [6, 4] and covers(steps(clone, "e"), 80)
    assert started_nodes(clone.log(job)) == ["n1,n2,n3", "n1,n3"]
    assert clone.events("e") == ["start", "lost", "start", "finished"]


def test_a_dead_first_node_costs_a_requeue(clone, cluster):
    job = clone.submit("--nodes=1-2", "slurm/pretrain_w1024.sh", *overrides("f", 60))
    clone.reaches("f", 8, job)
    cluster.kill("n1")
    found = clone.finish(job)
    assert int(found["Restarts"]) >= 1
    assert started_nodes(clone.log(job)) == ["n1,n2", "n2,n3"]
    assert covers(steps(clone, "f"), 60)


@pytest.mark.slow
def test_a_cut_cable_costs_a_step_and_the_node_is_used_again(clone, cluster):
    job = clone.submit("--nodes=1-3", "slurm/pretrain_w1024.sh", *overrides("g", 2000))
    clone.reaches("g", 8, job)
    cluster.cut("n2")
    wait_until(lambda: clone.worlds("g") == [6, 4], lambda: f"two nodes:\n{clone.log(job)}")
    assert cluster.job(job)["Restarts"] == "0"
    cluster.plug("n2")
    wait_until(lambda: cluster.node_state("n2") == "idle", "n2 back")
    clone.command("scontrol", "requeue", job)
    wait_until(lambda: clone.worlds("g") == [6, 4, 6], lambda: f"three nodes again:\n{clone.log(job)}")
    clone.command("scancel", job)
    clone.finish(job, "CANCELLED")
    assert started_nodes(clone.log(job)) == ["n1,n2,n3", "n1,n3", "n1,n2,n3"]


def test_the_controller_may_be_away_for_a_while(clone, cluster):
    job = clone.submit("--nodes=2", "slurm/pretrain_w1024.sh", *overrides("o", 60))
    clone.reaches("o", 8, job)
    cluster.stop_controller()
    wait_until(lambda: len(clone.rows("o")) >= 40, lambda: clone.log(job))
    cluster.start_controller()
    found = clone.finish(job)
    assert found["Restarts"] == "0" and steps(clone, "o") == list(range(1, 61))


def test_a_crash_fails_the_job_at_once_with_the_ranks_last_words(clone):
    job = clone.submit("--nodes=2", "slurm/pretrain_w1024.sh", *overrides("i", 60), STANDIN_FAIL_AT="7")
    found = clone.finish(job, "FAILED")
    assert found["Restarts"] == "0" and found["ExitCode"] == "1:0"
    assert "rank 3 failed" in clone.log(job) and "this rank was told to fail" in clone.log(job)
    assert clone.events("i") == ["start", "failed"]


def test_a_mistake_in_the_config_is_told_before_a_rank_starts(clone):
    job = clone.submit("--nodes=2", "slurm/pretrain_w1024.sh", "model.widht=3", "run.name=m")
    found = clone.finish(job, "FAILED")
    assert found["ExitCode"] == "2:0" and "did you mean width" in clone.log(job)
    assert "starting" not in clone.log(job)


def test_restarts_are_capped(clone):
    job = clone.submit("--nodes=2", "slurm/pretrain_w1024.sh", *overrides("x", 900), LAUNCH_MAX_RESTARTS="0")
    clone.reaches("x", 3, job)
    clone.command("scancel", "--batch", "--signal=USR1", job)
    clone.finish(job, "FAILED")
    assert "LAUNCH_MAX_RESTARTS=0" in clone.log(job)


def test_two_jobs_on_one_node_do_not_meet(clone):
    """Half a node each, at the same time; a world that met the other job's ranks would not be of two."""
    half = ["--oversubscribe", "--mem=500", "--cpus-per-task=2", "--gres=gpu:1", "--nodelist=n1,n2", "--nodes=2"]
    jobs = [clone.submit(*half, "slurm/pretrain_w1024.sh", *overrides(f"j{index}", 120)) for index in range(2)]
    for index, job in enumerate(jobs):
        clone.reaches(f"j{index}", 3, job)
    assert [clone.cluster.state(job) for job in jobs] == ["RUNNING", "RUNNING"]
    for index, job in enumerate(jobs):
        clone.finish(job)
        assert clone.worlds(f"j{index}") == [2] and steps(clone, f"j{index}") == list(range(1, 121))


def test_two_jobs_do_not_share_a_run_directory(clone):
    first = clone.submit("--nodes=1", "slurm/pretrain_w1024.sh", *overrides("s", 900))
    clone.reaches("s", 3, first)
    second = clone.submit("--nodes=1", "slurm/pretrain_w1024.sh", *overrides("s", 900))
    clone.finish(second, "FAILED")
    assert f"belongs to job {first}" in clone.log(second)
    assert clone.cluster.state(first) == "RUNNING"


def test_a_lone_rank_that_is_stopped_is_killed_and_started_again(clone):
    job = clone.submit(
        "--nodes=1",
        "slurm/pretrain_w1024.sh",
        *overrides("q", 60),
        LAUNCH_RANKS_PER_NODE="1",
        LAUNCH_HEARTBEAT_SECONDS="1",
        STANDIN_SILENCE_SECONDS=str(clone.cluster.seconds(5)),
    )
    clone.reaches("q", 8, job)
    os.kill(process_of("standin train", "run.name=q"), signal.SIGSTOP)
    found = clone.finish(job)
    assert found["Restarts"] == "0" and covers(steps(clone, "q"), 60)
    assert clone.events("q") == ["start", "lost", "start", "finished"]
    assert "no rank has shown life" in clone.log(job) and "lost a rank that showed no life" in clone.log(job)


def process_of(*words: str) -> int:
    """The Python process whose command line has all of these words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_text().replace("\0", " ")
            if line.startswith("python") and all(word in line for word in words):
                found.append(int(path.parent.name))
    assert len(found) == 1, found
    return found[0]


def test_an_ordinary_users_job_saves_and_requeues_itself(users_clone):
    """Submitted by somebody without rights, whose home folder cannot be written to, for two nodes."""
    total = 20 * int(users_clone.environment["LAUNCH_QUIET_SECONDS"])  # twice as long as a signal may wait
    changes = overrides("u", total, checkpoint__every_steps=10 * total)
    job = users_clone.submit("--nodes=2", "slurm/pretrain_w1024.sh", *changes, **QUICKER)
    users_clone.reaches("u", 8, job)
    users_clone.command("scancel", "--batch", "--signal=USR1", job)
    found = users_clone.finish(job)
    assert found["UserId"].startswith(f"{USER}(") and found["Restarts"] == "1"
    assert steps(users_clone, "u") == list(range(1, total + 1))
    assert {path.owner() for path in (users_clone.folder / "runs").rglob("*")} == {USER}


def test_a_node_that_fails_the_check_is_left_out(clone):
    (clone.folder / "slurm" / "site.env").write_text("NODE_CHECK='[ \"$(hostname)\" != n3 ]'\n")
    job = clone.submit("--nodes=3", "slurm/pretrain_w1024.sh", *overrides("k", 10))
    clone.finish(job)
    assert started_nodes(clone.log(job)) == ["n1,n2"]
