"""Studies of equal minutes: their checks, and bits over minutes that are planted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.study import planted
from tests.study.test_grid import numbers, problems, table
from upscale.checkpoint import layout, manifest
from upscale.study import grid_reporting, minutes
from upscale.study.members import Member

MINUTES = {
    "name": "minutes",
    "report": "minutes",
    "config": "{folder}/tiny.yaml",
    "seeds": [0, 1],
    "set": {
        "run.minutes": 60,
        "schedule": {"batch": {"start": 12, "end": 12, "from": 0, "to": 0}, "wake_every": 0, "instances": 1200},
        "evaluation": {"every": 120, "slices": 40, "tasks": ["toy", "bits"]},
    },
    "axes": {"recipe": {"slow": {}, "fast": {"set": {"optimizer.learning_rate": 0.02}}}},
}


def bits(member: Member, task: str, seen: float) -> list[float]:
    """8 before training, falling by a bit each 300 rows; the fast one to 0.5 below."""
    lower = 0.5 * (member.config.optimizer.learning_rate > 0.015) * seen / 1200
    return [8 - seen / 300 - lower + (0.1 if task == "bits" else 0.0)] * 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"set__run.minutes": None}, "needs the same run.minutes for all trainings; there are slow none"),
        (
            {"axes__recipe__fast": {"set": {"run.minutes": 30}}},
            "needs the same run.minutes for all trainings; there are slow 60.0, fast 30.0",
        ),
        ({"axes": {"width": {"a": {}, "b": {}}}}, "report: minutes needs an axis recipe"),
    ],
)
def test_mistakes_are_found_before_anything_starts(tmp_path, changes, message):
    tree = json.loads(json.dumps(MINUTES))
    if "set__run.minutes" in changes:
        del tree["set"]["run.minutes"]
        changes = {}
    assert message in problems(tmp_path, tree, **changes)


def test_a_training_has_finished_when_its_minutes_are_over(tmp_path):
    member = planted.planned(tmp_path, MINUTES).members()[0]
    planted.train(member)
    assert member.finished()  # at its last row
    step = manifest.step_folder(member.directory / layout.CHECKPOINTS, 100)
    for seconds, expected in ((3599.0, False), (3600.0, True)):
        counters = {"step": 100, "instances": 600, "seconds": seconds}
        manifest.write(step, {**manifest.read(step), "counters": counters})
        assert member.finished() == expected


def test_bits_are_compared_at_equal_minutes(tmp_path):
    """A hundred logged steps of 36 seconds are an hour: half of it is half of the rows."""
    plan = planted.planned(tmp_path, MINUTES)
    for member in plan.members():
        planted.train(member, bits)
    printed = grid_reporting.write(plan, ["upscale", "study", "grid.yaml"])
    page = (plan.to / "minutes.md").read_text()
    found = table(page, "bits at equal minutes")
    assert found["slow"]["minutes"] == "60.0" and found["slow"]["rows"] == "1,200" and found["slow"]["seeds"] == "2"
    for share, slow, fast in ((25, 7.05, 6.925), (50, 6.05, 5.80), (100, 4.05, 3.55)):
        expected = {"slow": slow, "fast": fast}
        assert {name: numbers(row[f"mean bits at {share}%"])[0] for name, row in found.items()} == pytest.approx(
            expected
        )
    assert table(page, "bits per character")["toy"] == {"task": "toy", "slow": "4.000", "fast": "3.500 (-0.500)"}
    assert (plan.to / "minutes-minutes.png").read_bytes().startswith(b"\x89PNG") and "equal minutes" in printed
    record = json.loads((plan.to / "minutes.json").read_text())["series"][""][0]["seeds"]["1"]
    assert record["minutes"] == 60 and record["rows"] == 1200


def test_minutes_of_an_evaluation_lie_between_logged_steps(tmp_path):
    """Every tenth step is logged, each of which stands for ten; the slower half takes twice as long."""
    plan = planted.planned(tmp_path, MINUTES)
    member = plan.members()[0]
    planted.train(member, bits)
    records = [
        {"step": step, "instances": 12 * step, "loss_bits_per_byte": 4.0, "step_seconds": 6.0 if step <= 50 else 12.0}
        for step in range(10, 101, 10)
    ]
    (member.directory / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    run = member.run
    assert minutes.elapsed(run, [0, 60, 600, 900, 1200]).tolist() == pytest.approx([0, 0.5, 5, 10, 15])
    assert Path(run.path) == member.directory
