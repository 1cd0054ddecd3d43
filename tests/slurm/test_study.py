"""The study's chain of jobs on a real Slurm, with stand-ins for the ranks, and the scripts' form."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.slurm.cluster import wait_until
from tests.slurm.conftest import ROOT, overrides

STUDY = ["bash", "slurm/study.sh", "--config", "configs/w1024.yaml"]


def submitted(clone, run: str) -> dict[str, list[dict]]:
    kinds: dict[str, list[dict]] = {}
    for record in clone.rows(run, "slurm/jobs.jsonl"):
        kinds.setdefault(record["kind"], []).append(record)
    return kinds


def members(clone, run: str) -> list[str]:
    return sorted(path.name for path in (clone.folder / "runs").glob(f"{run}-*"))


def test_the_chain_runs_in_order(clone):
    shown = clone.command(*STUDY, *overrides("w", 12))
    jobs = {kind: found[0]["job"] for kind, found in submitted(clone, "w").items()}
    assert list(jobs) == ["pretrain", "evaluate", "finetune", "report"]
    assert all(re.search(rf"^{job} +{kind} ", shown, re.M) for kind, job in jobs.items()), shown
    clone.finish(jobs["report"])
    assert all(clone.cluster.state(job) == "COMPLETED" for job in jobs.values())
    assert members(clone, "w") == [
        f"w-{corpus}-{kind}" for corpus in ("linux", "wp") for kind in ("pretrained", "scratch")
    ]
    assert "report" in clone.log(jobs["report"]) and "runs/w-linux-scratch" in clone.log(jobs["report"])
    begins = [clone.cluster.job(jobs[kind])["StartTime"] for kind in ("pretrain", "evaluate", "report")]
    assert begins == sorted(begins)


def test_a_failing_pretraining_cancels_its_followers(clone):
    clone.command(*STUDY, *overrides("x", 60), STANDIN_FAIL_AT="3")
    jobs = {kind: found[0]["job"] for kind, found in submitted(clone, "x").items()}
    clone.finish(jobs["pretrain"], "FAILED")
    for kind in ("evaluate", "finetune", "report"):
        clone.finish(jobs[kind], "CANCELLED")
    assert members(clone, "x") == []


def test_each_milestone_is_fine_tuned_once_across_restarts(clone):
    """Milestones at 20, 40 and 60 of 60; the last is the end, which has its place in the chain."""
    clone.command(*STUDY, "--milestones", "20", *overrides("m", 60), SBATCH_GRES="gpu:2")
    jobs = submitted(clone, "m")
    assert list(jobs) == ["pretrain", "evaluate", "finetune-scratch", "finetune", "report"]
    pretrain = jobs["pretrain"][0]["job"]
    wait_until(lambda: len(submitted(clone, "m")["finetune"]) > 1, lambda: clone.log(pretrain))
    clone.command("scontrol", "requeue", pretrain)
    found = clone.finish(pretrain)
    assert found["Restarts"] == "1"
    later = [record for record in submitted(clone, "m")["finetune"] if "step" in record]
    assert [record["step"] for record in later] == [20, 40]
    for record in later:
        clone.finish(record["job"])
    clone.finish(jobs["report"][0]["job"])
    kinds = ["pretrained", "pretrained-step-00000020", "pretrained-step-00000040", "scratch"]
    assert members(clone, "m") == sorted(f"m-{corpus}-{kind}" for corpus in ("wp", "linux") for kind in kinds)
    shown = clone.command("upscale", "status", "--run", "runs/m")
    assert f"{pretrain}: finished" in shown and "1 (2 allocations)" in shown, shown
    assert "step 20: 20 instances, milestone" in shown and f"{later[0]['job']} finetune of step 20" in shown


def test_a_refused_followup_is_reported_and_does_not_stop_training(clone):
    job = clone.submit(
        "--nodes=1",
        "slurm/pretrain_w1024.sh",
        *overrides("y", 30, checkpoint__milestones=10),
        LAUNCH_FOLLOWUP="slurm/nothing.sh",
    )
    clone.finish(job)
    assert clone.log(job).count("step 10: could not submit") >= 1 and "nothing.sh" in clone.log(job)
    assert clone.rows("y")[-1]["step"] == 30


def test_a_dry_run_prints_the_lines_and_submits_nothing(clone):
    shown = clone.command(*STUDY, "--milestones", "5e6", "--dry-run", *overrides("z", 9))
    lines = [line for line in shown.splitlines() if "sbatch " in line]
    assert lines[0].startswith("LAUNCH_FOLLOWUP=slurm/finetune.sh sbatch --parsable slurm/pretrain_w1024.sh")
    assert lines[1] == (
        "sbatch --parsable --dependency=afterok:$pretrain --kill-on-invalid-dep=yes slurm/evaluate.sh runs/z"
    )
    assert "--array=1,3" in lines[2] and "--array=0,2" in lines[3] and "slurm/report.sh runs/z" in lines[4]
    assert not (clone.folder / "runs").exists() and not clone.cluster.inside("squeue", "--noheader")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config is missing"),
        (["--config"], "--config needs a value"),
        (["--config", "configs/w9.yaml"], "no job script slurm/pretrain_w9.sh"),
        (["--config", "configs/w1024.yaml", "--dry"], "unknown option --dry"),
        (["--config", "configs/w1024.yaml", "x"], "'x' is neither"),
    ],
)
def test_a_study_says_what_is_wrong_with_its_arguments(arguments, message):
    done = subprocess.run(["bash", "slurm/study.sh", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr
