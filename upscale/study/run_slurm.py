"""A study's members as Slurm jobs, each after the one whose weights it takes, and a last one that reports."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from upscale.errors import RunError, UserError
from upscale.files import append_json_lines
from upscale.launch.slurm import followups
from upscale.study.grid import GridPlan
from upscale.study.members import Member
from upscale.study.plan import Plan

REPORT = "report"
REPORT_SCRIPT = "slurm/study_report.sh"
# As slurm/study.sh: the variables of sbatch may stand in the site's file.
WITH_SITE = '[ ! -f slurm/site.env ] || source slurm/site.env; exec "$@"'
LIVING = "PENDING,CONFIGURING,RUNNING,SUSPENDED,COMPLETING,REQUEUED"


def submit(plan: Plan | GridPlan, members: Sequence[Member], report: Sequence[str], dry_run: bool) -> int:
    """Submit what has not finished and is not in the queue already; prints the jobs, or with `dry_run` sbatch's lines.

    A member that fails cancels those that continue it; the report runs after all have ended, however they did.
    """
    for script in [*dict.fromkeys(member.script for member in members), REPORT_SCRIPT]:
        if not Path(script).is_file():
            raise UserError(
                f"no job script {script} below the current folder: start this in the clone, or name one in "
                "slurm.script of the study"
            )
    jobs: dict[str, str] = {}
    new = False
    earlier = {record["kind"]: record["job"] for record in followups.records(plan.folder)}
    for place, member in enumerate(members):
        if member.finished():
            continue
        if not dry_run and member.name in earlier and _alive(earlier[member.name]):
            jobs[member.name] = earlier[member.name]
            print(f"{jobs[member.name]:>10}  {member.name}: submitted before")
            continue
        words = [f"--job-name={member.name}"]
        if needed := [jobs[one.name] for one in member.needs if one.name in jobs]:
            words += [f"--dependency=afterok:{':'.join(needed)}", "--kill-on-invalid-dep=yes"]
        words += [*member.slurm, member.script]
        new = True
        jobs[member.name] = _sbatch(plan, member.name, [*words, *member.arguments], f"$job_{place + 1}", dry_run)
    if not new and not dry_run and _alive(earlier.get(REPORT, "0")):
        last = earlier[REPORT]
        print(f"{last:>10}  {REPORT}: submitted before")
    else:
        words = [f"--job-name={plan.study.name}-report", "--gres=none"]
        words += [f"--dependency=afterany:{':'.join(jobs.values())}"] if jobs else []
        last = _sbatch(plan, REPORT, [*words, REPORT_SCRIPT, *report], "$report", dry_run)
    if dry_run:
        print(f"\nnothing was submitted (--dry-run); {len(jobs)} of {len(members)} trainings have not finished")
    else:
        print(f"\nthe jobs: {plan.folder / followups.JOBS}\nstop all: scancel {' '.join([*jobs.values(), last])}")
    return 0


def _sbatch(plan: Plan | GridPlan, kind: str, words: Sequence[str], placeholder: str, dry_run: bool) -> str:
    """The job's id; with `dry_run` its placeholder, after printing the line."""
    command = ["sbatch", "--parsable", *words]
    if dry_run:
        print(f"{placeholder.lstrip('$')}=$({_shown(command)})")
        return placeholder
    try:
        job = _output(command).strip().split(";")[0]
    except (OSError, subprocess.SubprocessError) as error:
        why = (getattr(error, "stderr", None) or str(error)).strip()
        message = f"could not submit {kind}: {why}\nwhat was submitted before stays; the same command goes on"
        raise RunError(message) from None
    path = plan.folder / followups.JOBS
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "kind": kind, "job": job, "command": shlex.join(command)}
    append_json_lines(path, [record])
    print(f"{job:>10}  {kind}")
    return job


def _shown(command: Sequence[str]) -> str:
    """The line as a shell reads it, the ids of earlier jobs left as its variables."""
    return " ".join(word if "=after" in word else shlex.quote(word) for word in command)


def _alive(job: str) -> bool:
    """Whether Slurm still has it; an id that it has forgotten makes squeue fail."""
    try:
        return bool(_output(["squeue", "--noheader", f"--jobs={job}", f"--states={LIVING}"]).strip())
    except subprocess.CalledProcessError:
        return False


def _output(command: Sequence[str]) -> str:
    words = ["bash", "-c", WITH_SITE, "bash", *command]
    seconds = followups.SUBMIT_SECONDS
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=seconds).stdout
