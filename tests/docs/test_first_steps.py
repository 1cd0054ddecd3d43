"""docs/first_steps.py does what docs/first_steps.md says, and what it writes is what docs/architecture.md promises."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from types import ModuleType

import pytest

from tests import test_train
from tests.docs import markdown

TINY = """
model.width=32 model.depth=2 model.heads=2 model.context=64 model.plain_blocks=2 mup.base_width=32 data.lanes=4
schedule.warmup=16 schedule.wake_every=0 schedule.batch.start=8 schedule.batch.end=8 schedule.batch.from=0
schedule.batch.to=0 engine.name=fsdp engine.precision=fp32 tracking.wandb=disabled tracking.log_every=1
""".split()

SMALL = """
model.width=64 mup.base_width=64 model.context=128 optimizer.learning_rate=4e-3 schedule.warmup=200
evaluation.tasks=[wp] evaluation.slices=100 tracking.log_every=10
""".split()


@pytest.fixture
def script(monkeypatch) -> ModuleType:
    """The script as a module, in the clone's root."""
    monkeypatch.chdir(markdown.ROOT)
    spec = importlib.util.spec_from_file_location("first_steps", markdown.ROOT / "docs/first_steps.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def documented(heading: str) -> set[str]:
    """The fields in the table under a heading of docs/architecture.md."""
    text = (markdown.ROOT / "docs/architecture.md").read_text().partition(f"\n### {heading}\n")[2].partition("\n#")[0]
    first_cells = (line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))
    return {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}


def forked(*words: str) -> None:
    """What the script's `command` does, in a process that has imported torch already."""
    code, output = test_train.finish(test_train.start([sys.executable, "-m", "upscale.cli", *words]))
    assert code == 0, output


def test_rows_training_and_zero_shot_and_the_fields_of_the_run_directory(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "command", forked)
    assert {len(row) for row in script.look_at_rows(TINY, rounds=2)} == {65}
    evaluation = ["evaluation.every=32", "evaluation.slices=4", "evaluation.tasks=[dyck]"]
    steps = script.pretrain(tmp_path / "run", 32, [*TINY, *evaluation, "tracking.stability=true"])
    assert [step["instances"] for step in steps] == [8, 16, 24, 32]
    assert all(step.keys() == documented("metrics.jsonl") for step in steps)
    evaluations = [json.loads(line) for line in (tmp_path / "run/evaluations.jsonl").read_text().splitlines()]
    assert [record["instances"] for record in evaluations] == [0, 32]
    assert all(record.keys() == documented("evaluations.jsonl") for record in evaluations)
    records = script.zero_shot(tmp_path / "run", ["dyck", "wp"], slices=8)
    assert [(record["task"], record["samples"]) for record in records] == [("dyck", 8), ("wp", 8)]
    assert all(7 < record["bits_per_character"] < 9 for record in records)  # an untrained model guesses: 8 bits


@pytest.mark.slow
def test_the_whole_script_learns(script, tmp_path, capsys):
    """Training brings the loss below guessing, and fine-tuning brings Wikipedia below zero-shot."""
    options = ["--folder", str(tmp_path), "--rows", "2000", "--fine-tuning-rows", "800"]
    script.main([*options, *TINY, *SMALL])
    printed = capsys.readouterr().out
    first, last = map(float, re.search(r"Loss: ([\d.]+) bits per byte, then ([\d.]+)", printed).groups())
    assert last < first - 0.5
    bits = {name: float(value) for name, value in re.findall(r"fine-tuning, (\w+): ([\d.]+)", printed)}
    zero_shot = float(re.search(r"^wp +excerpt +([\d.]+)", printed, re.MULTILINE)[1])
    assert bits.keys() == {"pretrained", "scratch"} and max(bits.values()) < zero_shot
