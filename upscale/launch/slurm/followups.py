"""Jobs that follow a running pre-training: each milestone's checkpoint is handed to a job script, once.

`python -m upscale.launch.slurm.followups --run DIR [--every SECONDS] SCRIPT` submits `SCRIPT DIR STEP` with sbatch for
every milestone that has a complete checkpoint. What was submitted stands in DIR/slurm/jobs.jsonl, so that a restart
submits nothing twice. It runs beside the batch script, not in the trainer: sbatch may not exist where the ranks run (in
a container, say), and nothing that goes wrong here can reach the training.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import time
from pathlib import Path

from upscale.checkpoint import layout, manifest
from upscale.console import command
from upscale.files import append_json_lines, read_json_lines

JOBS = "slurm/jobs.jsonl"
# Of the array in slurm/finetune.sh: what depends on the checkpoint. The study submits the scratch members, once.
PRETRAINED_MEMBERS = "0,2"
SUBMIT_SECONDS = 120
# What a job inherits from the job that submits it would contradict its own allocation.
OWN_VARIABLES = (
    "SLURM_",
    "SRUN_",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "MASTER_",
    "CUDA_VISIBLE_DEVICES",
    "LAUNCH_FOLLOWUP",
)
KEPT_VARIABLES = ("SLURM_CONF",)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m upscale.launch.slurm.followups", allow_abbrev=False)
    parser.add_argument("script", help="what to submit: slurm/finetune.sh")
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run directory of the pre-training")
    parser.add_argument("--every", type=float, metavar="SECONDS", help="look again and again; default: once")
    options = parser.parse_args(arguments)
    refused: set[int] = set()
    while True:
        for step in due(options.run):
            if step not in refused and not submit(options.run, step, options.script):
                refused.add(step)  # reported once; tried again at the next start
        if not options.every:
            return 0
        time.sleep(options.every)


def due(run: Path) -> list[int]:
    """Steps of complete milestone checkpoints nothing was submitted for yet, oldest first.

    The end of the schedule is not among them: the last checkpoint has its own place in the study.
    """
    done = {record.get("step") for record in records(run)}
    folder, found = run / layout.CHECKPOINTS, []
    for step in manifest.steps(folder):
        try:
            content = manifest.read(manifest.step_folder(folder, step))
            finished = content["counters"]["instances"] >= content["config"]["schedule"]["instances"]
        except (manifest.InvalidCheckpoint, LookupError, TypeError):  # also one whose config has no schedule
            continue
        if content["milestone"] and not finished and step not in done:
            found.append(step)
    return found


def records(run: Path) -> list[dict]:
    """What was submitted for this run, oldest first."""
    path = run / JOBS
    return list(read_json_lines(path)) if path.exists() else []


def submit(run: Path, step: int, script: str) -> bool:
    """Submit one follow-up and record it; False, after saying why, when Slurm refuses."""
    name = f"{run.name}-step-{step:08d}"
    sbatch = [
        "sbatch",
        "--parsable",
        f"--job-name={name}",
        f"--array={PRETRAINED_MEMBERS}",
        script,
        str(run),
        str(step),
    ]
    environment = {
        key: value for key, value in os.environ.items() if key in KEPT_VARIABLES or not key.startswith(OWN_VARIABLES)
    }
    try:
        # A start that ended between sbatch and the record has left the job in the queue.
        queued = _output(["squeue", "--noheader", f"--name={name}", "--format=%F"], environment).split()
        job = queued[0] if queued else _output(sbatch, environment).strip().split(";")[0]
    except (OSError, subprocess.SubprocessError) as error:
        why = (getattr(error, "stderr", None) or str(error)).strip()
        print(f"followups: WARNING: step {step}: could not submit {' '.join(sbatch)}: {why}", flush=True)
        return False
    (run / JOBS).parent.mkdir(parents=True, exist_ok=True)
    record = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "kind": "finetune", "step": step, "job": job}
    append_json_lines(run / JOBS, [{**record, "command": " ".join(sbatch)}])
    print(f"followups: milestone at step {step}: submitted job {job} ({script})", flush=True)
    return True


def _output(words: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(
        words, env=environment, capture_output=True, text=True, check=True, timeout=SUBMIT_SECONDS
    ).stdout


if __name__ == "__main__":
    command.run(main)
