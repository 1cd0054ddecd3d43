"""`upscale study FILE --slurm` on a real Slurm, with stand-ins for the ranks."""

from __future__ import annotations

import sys

import pytest

from tests.study import tiny

STUDY = [sys.executable, "-c", "from upscale.cli import main; main()", "study", "study.yaml", "--slurm"]
MEMBERS = ["text-0", "first-0", "first.text-0", "first.text-embeddings-head-attention-0"]


@pytest.fixture
def study(clone):
    """The clone with a study file whose stages are as short as the stand-in can make them, submitted on hold."""
    changes = {
        "stages__first__set__schedule.instances": 120,
        "stages__text__set__schedule.instances": 24,
        "stages__first__slurm": ["--time=10"],
    }
    tiny.write(clone.folder, **changes, slurm={"options": ["--nodes=1", "--hold"]})
    return clone


def jobs(clone) -> dict[str, str]:
    return {record["kind"]: record["job"] for record in clone.rows("tiny", "slurm/jobs.jsonl")}


def release(clone) -> None:
    for name in MEMBERS:
        clone.command("scontrol", "release", jobs(clone)[name])


def test_a_dry_run_prints_the_lines_of_the_chain(study):
    shown = study.command(*STUDY, "--dry-run")
    lines = [line for line in shown.splitlines() if "sbatch" in line]
    first = "--job-name=first-0 --nodes=1 --hold --time=10 slurm/pretrain_w1024.sh --config"
    assert lines[1].startswith(f"job_2=$(sbatch --parsable {first}"), shown
    after = "--dependency=afterok:$job_2 --kill-on-invalid-dep=yes --nodes=1 --hold slurm/pretrain_w1024.sh"
    assert lines[2].startswith(f"job_3=$(sbatch --parsable --job-name=first.text-0 {after}"), shown
    end = "--dependency=afterany:$job_1:$job_2:$job_3:$job_4 slurm/study_report.sh upscale study study.yaml --report)"
    assert lines[4] == f"report=$(sbatch --parsable --job-name=tiny-report --gres=none {end}", shown
    assert not (study.folder / "runs").exists() and not study.cluster.inside("squeue", "--noheader")


def test_each_member_follows_the_one_it_continues_and_nothing_is_submitted_twice(study):
    study.command(*STUDY)
    found = jobs(study)
    assert list(found) == [*MEMBERS, "report"]
    again = study.command(*STUDY)
    assert again.count("submitted before") == 5 and jobs(study) == found, again
    release(study)
    study.finish(found["report"])
    for name in MEMBERS:
        assert study.cluster.state(found[name]) == "COMPLETED", study.log(found[name])
    begins = [study.cluster.job(found[name])["StartTime"] for name in ("first-0", "first.text-0", "report")]
    assert begins == sorted(begins)
    assert "study study.yaml --report" in study.log(found["report"])


def test_a_failure_cancels_what_continues_it_and_the_report_still_comes(study):
    study.command(*STUDY, STANDIN_FAIL_AT="3")
    found = jobs(study)
    release(study)
    study.finish(found["first-0"], "FAILED")
    for name in MEMBERS[2:]:
        study.finish(found[name], "CANCELLED")
    study.finish(found["report"])
