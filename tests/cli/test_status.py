"""`upscale status` and what it reads, from files as the trainer and the Slurm scripts write them; no Slurm needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from upscale.checkpoint import manifest
from upscale.cli import status
from upscale.config import files as config_files
from upscale.errors import UserError
from upscale.launch.slurm import followups, questions, shape


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Half of a run of 144 instances with milestones at 36 and 72, one lost node and one requeue."""
    config = tiny.config(run__dir=tmp_path, checkpoint__milestones=36)
    config_files.write(config, tmp_path / "config.yaml")
    world = [4] * 3 + [2] * 3
    rows = [
        {"step": step, "instances": 12 * step, "loss_bits_per_byte": 8 / step, "global_batch": 12}
        | {"step_seconds": 600.0, "world_size": world[step - 1]}
        for step in range(1, 7)
    ]
    write_lines(tmp_path / "metrics.jsonl", rows)
    shared = {"time": "2026-01-02T03:04:05+0000", "job": "17", "verb": "train", "restart": 0}
    events = [
        {**shared, "event": "start", "attempt": 0, "nodes": "n1,n2", "ranks": 4},
        {**shared, "event": "lost", "nodes": "n2"},
        {**shared, "event": "start", "attempt": 1, "nodes": "n1", "ranks": 2},
        {**shared, "event": "requeued", "reason": "the ranks have saved"},
        {**shared, "verb": "evaluate", "job": "18", "event": "finished"},
    ]
    write_lines(tmp_path / "slurm" / "events.jsonl", events)
    write_lines(tmp_path / "slurm" / "jobs.jsonl", [{"kind": "pretrain", "job": "17"}])
    for step in (3, 5, 6):
        path = manifest.step_folder(tmp_path / "checkpoints", step)
        path.mkdir(parents=True)
        content = {"counters": {"step": step, "instances": 12 * step}, "milestone": step != 5, "world_size": 2}
        lists = {"files": {}, "pieces": {}, "lanes": {}}
        manifest.write(path, {"step": step, **content, **lists, "config": config_files.as_tree(config)})
    manifest.step_folder(tmp_path / "checkpoints", 7).mkdir()
    return tmp_path


def write_lines(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_every_line(run, capsys):
    assert status.main(["--run", str(run)]) == 0
    shown = capsys.readouterr().out
    for line in (
        "6; 72 of 144 instances, 50.0%",
        "time left       1:00:00 at 0.0 rows/s",
        "2 ranks (before: 4)",
        "17: waiting for its next allocation: the ranks have saved",
        "1 (1 allocations)",
        "lost nodes      n2",
        "step 6: 72 instances, milestone",
        "step 5: 60 instances\n",
        "step 7: INVALID",
        "17 pretrain",
    ):
        assert line in shown, shown


def test_a_run_that_has_only_begun(tmp_path, capsys):
    questions.main(["begin", *tiny.overrides(run__dir=tmp_path / "new")])
    assert status.main(["--run", str(tmp_path / "new")]) == 0
    shown = capsys.readouterr().out
    assert "none logged yet" in shown and "restarts" not in shown
    with pytest.raises(UserError, match="not a run directory"):
        status.main(["--run", str(tmp_path)])


def test_it_starts_without_torch(run):
    code = "import sys; from upscale.cli import status; status.main(sys.argv[1:]); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, "--run", run], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "absent"),
    [("upscale.launch.slurm.questions", "torch"), ("upscale.config", "torch.distributed.tensor")],
)
def test_what_every_job_starts_imports_no_more_than_it_needs(module, absent):
    """A job asks several questions before its first step, and every command reads a config."""
    code = f"import sys, {module}; assert {absent!r} not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_beginning_a_run_again_leaves_its_config(run):
    before = (run / "config.yaml").read_bytes()
    questions.main(["begin", *tiny.overrides(run__dir=run, schedule__instances=9)])
    assert (run / "config.yaml").read_bytes() == before


def test_the_shape_of_a_run_gives_another_config_its_model(run):
    given = shape.model_of(run)
    model = config_files.load(None, [*given, "data.sources=[{kind: uniform}]"]).resolved().model
    ours = tiny.config().model
    assert (model.width, model.depth, model.heads, model.context) == (ours.width, ours.depth, ours.heads, ours.context)
    assert "mup.base_width=64" in given


def test_milestones_are_due_until_submitted(run):
    assert followups.due(run) == [3, 6]
    write_lines(run / "slurm" / "jobs.jsonl", [{"kind": "pretrain", "job": "17"}, {"kind": "finetune", "step": 3}])
    assert followups.due(run) == [6]


def test_a_milestone_is_submitted_once_even_if_its_record_was_lost(run, tmp_path, monkeypatch):
    """Against stand-ins for sbatch and squeue: what stands in the queue under the milestone's name is taken over."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name, text in (
        ("squeue", f'[ "$2" != --name={run.name}-step-00000003 ] || echo 71'),
        ("sbatch", f'env >{tmp_path}/environment; echo "72;cluster"'),
    ):
        (binaries / name).write_text(f"#!/bin/sh\n{text}\n")
        (binaries / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{binaries}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_CONF", "kept")
    assert followups.main(["--run", str(run), "slurm/finetune.sh"]) == 0
    assert [(record.get("step"), record["job"]) for record in followups.records(run)[1:]] == [(3, "71"), (6, "72")]
    inherited = (tmp_path / "environment").read_text()
    assert "SLURM_CONF=kept" in inherited and "SLURM_NTASKS" not in inherited
    assert followups.main(["--run", str(run), "slurm/finetune.sh"]) == 0
    assert len(followups.records(run)) == 3


def test_a_submission_that_fails_is_reported_and_left_for_the_next_start(run, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert followups.main(["--run", str(run), "slurm/finetune.sh"]) == 0
    assert capsys.readouterr().out.count("WARNING: step 3: could not submit") == 1
    assert followups.due(run) == [3, 6]
