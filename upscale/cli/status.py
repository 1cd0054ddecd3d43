"""`upscale status --run DIR`: where a run stands, from its files alone, on a machine without Slurm or a GPU too."""

from __future__ import annotations

import argparse
import time
from datetime import datetime
from pathlib import Path

from upscale.checkpoint import layout, manifest
from upscale.console.text import duration, harmless
from upscale.errors import UserError
from upscale.files import read_json_lines
from upscale.launch.slurm import followups
from upscale.training.record import read_steps

EVENTS = "slurm/events.jsonl"
# What a job's last event says about the job.
MEANING = {
    "start": "running, as far as its files tell",
    "lost": "starting again on the nodes that answer",
    "requeued": "waiting for its next allocation",
    "stopped": "stopped by Slurm after saving",
    "finished": "finished",
    "failed": "FAILED",
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="upscale status", description="Where a run stands: step, time left, restarts, checkpoints, jobs."
    )
    parser.add_argument("--run", required=True, type=Path, metavar="DIR", help="run directory that training writes")
    run = parser.parse_args(arguments).run
    config = layout.config_tree(run)
    try:
        facts = {**progress(run, config), **cluster(run), "checkpoints": checkpoints(run), "follow-up jobs": jobs(run)}
    except (ValueError, LookupError, TypeError, ArithmeticError) as error:  # files that no run wrote, or damaged ones
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"the files of {run} are damaged or of another version and cannot be read: {what}") from None
    width = max(map(len, facts))
    for name, value in facts.items():
        first, *rest = [harmless(text) for text in ([value] if isinstance(value, str) else value or ["none"])]
        print(f"{name.ljust(width)}  {first}", *(f"{' ' * width}  {line}" for line in rest), sep="\n")
    return 0


def progress(run: Path, config: dict) -> dict[str, str]:
    """Last logged step, loss, speed, and the time left at that speed."""
    path = run / layout.METRICS
    logged = read_steps(path)
    if not logged:
        return {"step": "none logged yet"}
    last, total, steps = logged[-1], config["schedule"]["instances"], config["run"]["steps"]
    if last.instances >= total or (steps is not None and last.step >= steps):
        left = "none: finished"
    else:
        left = last.time_left_text(total, steps)
        left += f" at {last.rows_per_second:,.1f} rows/s" if last.rows_per_second else ""
    return {
        "step": f"{last.step:,}; {last.instances:,} of {total:,} instances, {last.instances / total:.1%}",
        "loss": last.loss_text,
        "time left": left,
        "last logged": f"{duration(time.time() - path.stat().st_mtime)} ago",
        "world": f"{last.world_size} ranks" + _earlier([record.world_size for record in logged]),
    }


def _earlier(sizes: list[int | None]) -> str:
    changes = [size for index, size in enumerate(sizes) if index == 0 or sizes[index - 1] != size]
    return f" (before: {', '.join(map(str, changes[:-1]))})" if len(changes) > 1 else ""


def cluster(run: Path) -> dict[str, str]:
    """The Slurm job and what happened to it; nothing for a run that was started by hand."""
    path = run / EVENTS
    events = [event for event in read_json_lines(path) if event["verb"] == "train"] if path.exists() else []
    if not events:
        return {}
    last, starts = events[-1], [event for event in events if event["event"] == "start"]
    lost = [event["nodes"] for event in events if event["event"] == "lost"]
    allocations = len({(event["job"], event["restart"]) for event in starts})
    found = {
        "job": f"{last['job']}: {MEANING[last['event']]}" + (f": {last['reason']}" if "reason" in last else ""),
        "since": str(datetime.fromisoformat(last["time"])),
        "restarts": f"{max(0, len(starts) - 1)} ({allocations} allocations)",
    }
    if starts:
        found["nodes"] = f"{starts[-1]['nodes']}, {starts[-1]['ranks']} ranks"
    if lost:
        found["lost nodes"] = ", ".join(lost)
    return found


def checkpoints(run: Path) -> list[str]:
    """One line each, complete or not; `upscale checkpoint verify` checks their bytes too."""
    lines = []
    for step in manifest.steps(run / layout.CHECKPOINTS):
        path = manifest.step_folder(run / layout.CHECKPOINTS, step)
        try:
            content = manifest.read(path)
        except manifest.InvalidCheckpoint as error:
            lines.append(f"step {step:,}: INVALID, {error}")
            continue
        kept = ", milestone" if content["milestone"] else ""
        lines.append(f"step {step:,}: {content['counters']['instances']:,} instances{kept}")
    return lines


def jobs(run: Path) -> list[str]:
    """What slurm/study.sh and the milestones have submitted."""
    return [
        f"{record['job']} {record['kind']}" + (f" of step {record['step']:,}" if "step" in record else "")
        for record in followups.records(run)
    ]
