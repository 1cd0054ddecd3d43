"""What must be true after a round, against a run of one rank that nothing happened to."""

from __future__ import annotations

import json
import time
from pathlib import Path

from tests.soak.soak import MILESTONE_STEPS, Ground, Limits, Round
from upscale.checkpoint import layout, lock, manifest
from upscale.files import read_json_lines
from upscale.launch.slurm import followups

TOLERANCE = 1e-5
"""Relative, on a loss and on bits per character. Other worlds and engines alone differ by 2e-7 after 120 steps."""
LANES = 12


class Reference:
    """The run without faults, made longer when a round has been longer than any before."""

    def __init__(self, folder: Path, limits: Limits):
        self.ground = Ground(folder, Limits(1, limits.engines[:1], False, limits.hang_seconds, limits.grace_seconds))
        self.directory = folder / "disk" / "run"

    def reach(self, steps: int) -> None:
        """Raises AssertionError with its output when it does not end well."""
        if len(records(self.directory)) < steps:
            process = self.ground.launch(self.directory, 1, self.ground.limits.engines[0], f"run.steps={steps}")
            assert process.wait() == 0, self.ground.output()


def records(directory: Path, name: str = "metrics.jsonl") -> list[dict]:
    path = directory / name
    return list(read_json_lines(path)) if path.exists() else []


def problems(run: Round, reference: Reference, steps: int) -> list[str]:
    """What a round must not show; empty when all is well."""
    reference.reach(steps)
    found = [*of_rows(run, reference, steps), *of_losses(run, reference, steps)]
    found += [*of_evaluations(run, reference, steps), *of_followups(run, steps), *of_what_is_left(run)]
    told = (run.directory / "log.txt").read_text().count("cannot be used, trying the one before it")
    if told < run.damaged:
        found.append(f"{run.damaged} checkpoints were damaged, and {told} refused")
    return found


def of_rows(run: Round, reference: Reference, steps: int) -> list[str]:
    here, there = rows(run.folder), rows(reference.ground.folder)
    wrong = [
        (step, lane)
        for step in range(1, steps + 1)
        for lane in range(LANES)
        if here.get((step, lane)) is None or here[step, lane] != there.get((step, lane))
    ]
    return [f"rows differ at (step, lane) {wrong[:5]} and {len(wrong)} in all"] if wrong else []


def rows(folder: Path) -> dict[tuple[int, int], str]:
    """Digest by (step, lane); a lane draws one round a step. Where two draws of it differed: 'differs'."""
    found: dict[tuple[int, int], str] = {}
    for path in (folder / "rows").iterdir():
        for line in path.read_text().split("\n")[:-1]:  # a kill may cut the last one off
            step, lane, digest = line.split()
            key = int(step), int(lane)
            found[key] = digest if found.get(key, digest) == digest else "differs"
    return found


def difference(here: float, there: float) -> float:
    return abs(here / there - 1)


def of_losses(run: Round, reference: Reference, steps: int) -> list[str]:
    here, there = records(run.directory), records(reference.directory)
    if [record["step"] for record in here] != list(range(1, steps + 1)):
        return [f"steps logged: {[record['step'] for record in here]}"]
    run.loss_difference = max(
        difference(a["loss_bits_per_byte"], b["loss_bits_per_byte"]) for a, b in zip(here, there, strict=False)
    )
    return [] if run.loss_difference <= TOLERANCE else [f"a loss differs by {run.loss_difference:.2e}"]


def of_evaluations(run: Round, reference: Reference, steps: int) -> list[str]:
    here = records(run.directory, "evaluations.jsonl")
    there = {(r["step"], r["task"], r["split"]): r for r in records(reference.directory, "evaluations.jsonl")}
    expected = sorted(key for key in there if key[0] <= steps)
    if sorted((r["step"], r["task"], r["split"]) for r in here) != expected or not expected:
        return [f"evaluations of steps {[r['step'] for r in here]} instead of {expected}"]
    pairs = [(r["bits_per_character"], there[r["step"], r["task"], r["split"]]["bits_per_character"]) for r in here]
    worst = max(difference(a, b) for a, b in pairs)
    return [] if worst <= TOLERANCE else [f"an evaluation differs by {worst:.2e}"]


def of_followups(run: Round, steps: int) -> list[str]:
    """The jobs that slurm/'s watcher has submitted by now: one for each milestone, whatever cut it short before."""
    submit_due(run.directory)
    found = sorted(record["step"] for record in followups.records(run.directory))
    # A milestone may have been damaged, and its job been submitted before.
    due = {step for step in readable(run.directory) if step % MILESTONE_STEPS == 0}
    allowed = set(range(MILESTONE_STEPS, steps + 1, MILESTONE_STEPS))
    right = len(found) == len(set(found)) and due <= set(found) <= allowed
    return [] if right else [f"follow-ups of steps {found}, with milestones at {sorted(due)}"]


def readable(directory: Path) -> set[int]:
    found = set()
    for step in manifest.steps(directory / "checkpoints"):
        try:
            manifest.read(manifest.step_folder(directory / "checkpoints", step))
            found.add(step)
        except manifest.InvalidCheckpoint:
            continue
    return found


def submit_due(directory: Path) -> None:
    """A look of the watcher, with a queue that takes every job."""
    queue = directory.parent / "queue.json"
    jobs = json.loads(queue.read_text()) if queue.exists() else {}

    def answer(words: list[str], _environment: dict) -> str:
        if words[0] == "squeue":
            return jobs.get(words[2].split("=", 1)[1].split("-step-")[1], "")
        number = str(len(jobs) + 1)
        jobs[words[2].split("=", 1)[1].split("-step-")[1]] = number
        queue.write_text(json.dumps(jobs))
        return number

    real, followups._output = followups._output, answer
    try:
        for step in followups.due(directory):
            assert followups.submit(directory, step, "slurm/finetune.sh")
    finally:
        followups._output = real


def of_what_is_left(run: Round) -> list[str]:
    """Processes, ports, and files that were half written or should be gone, some seconds after the end."""
    for _ in range(100):
        if not run.alive():
            break
        time.sleep(0.1)
    found = [f"process {pid} is left" for pid in run.alive()]
    used = {int(path.name.split("-")[0]) for path in (run.folder / "rows").iterdir()}
    if taken := sorted(used & listening()):
        found.append(f"ports {taken} are left")
    half = [path for path in run.directory.rglob("*") if path.name.startswith(".")]
    extra = [path for path in (run.folder / "temporary").iterdir() if not path.name.startswith("torchinductor")]
    # A killed supervisor cannot remove the folder of its heartbeats.
    heartbeats = [path for path in extra if path.name.startswith("upscale-")][run.killed_supervisors :]
    extra = [path for path in extra if not path.name.startswith("upscale-")] + heartbeats
    turns = [list((run.directory / name).iterdir()) for name in (lock.FOLDER, f"{layout.EVALUATIONS}.lock")]
    if half or extra or any(len(paths) != 1 for paths in turns):
        left = [*half, *extra, *turns[0][1:], *turns[1][1:]]
        found.append(f"files left: {[str(path.relative_to(run.folder)) for path in left]}")
    return found


def listening() -> set[int]:
    """Ports of this machine that somebody listens on."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().split("\n")[1:]]
    return {int(fields[1].rsplit(":")[-1], 16) for fields in lines if fields and fields[3] == "0A"}
