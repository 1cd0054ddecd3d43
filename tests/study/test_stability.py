"""Stability studies: what their trainings continue, and an edge that is planted."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy
import pytest

from tests.study import planted
from tests.study.test_grid import problems, table
from upscale.report.runs import Run
from upscale.study import grid_reporting, stability
from upscale.study.members import Member
from upscale.training.record import StepRecord

STABILITY = {
    "name": "stability",
    "report": "stability",
    "config": "{folder}/tiny.yaml",
    "before": {"config": "{folder}/tiny.yaml", "set": {"schedule.instances": 240}, "reinitialize": ["head"]},
    "set": {"schedule": {"instances": 1200, "wake_every": 0}, "engine.micro_batch": 4},
    "axes": {
        "remedy": {
            "none": {},
            "norm": {"set": {"model.qk_norm": True}},
            "decay": {"set": {"optimizer.weight_decay": 0.3}},
        },
        "width": {f"w{width}": {"set": {"model.width": width}} for width in (16, 32)},
        "rate": {f"r{power}": {"set": {"optimizer.learning_rate": 2.0**-power}} for power in (8, 6, 4)},
    },
}


def planned(folder: Path, **changes: object):
    return planted.planned(folder, STABILITY, **changes)


def test_each_architecture_has_one_training_before_its_switch(tmp_path):
    """Two widths with and without normalised queries; a rate or a decay makes no other one."""
    found = planned(tmp_path)
    members = {member.name: member for member in found.members()}
    first = [name for name in members if name.startswith("before")]
    assert first == ["before.w16-0", "before.w32-0", "before.norm.w16-0", "before.norm.w32-0"]
    assert len(members) == 3 * 2 * 3 + 4
    assert members["decay.w16.r6-0"].before.name == "before.w16-0"
    assert members["norm.w32.r6-0"].config.init.from_ == str(tmp_path / "runs/before.norm.w32-0")
    one = members["before.norm.w32-0"].config
    assert (one.model.width, one.model.qk_norm, one.schedule.instances, one.engine.micro_batch) == (32, True, 240, 4)
    assert members["none.w16.r8-0"].config.init.reinitialize == ["head"]
    assert one.run.seed != members["norm.w32.r6-0"].config.run.seed
    order = list(members)
    assert all(order.index(member.before.name) < order.index(name) for name, member in members.items() if member.before)
    some = [member.name for member in found.members(["none", "w16", "r4"])]
    assert some == ["before.w16-0", "none.w16.r4-0"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"before__config": None}, "before.config: field required"),
        ({"before__confg": "x"}, "before.confg: unknown key; did you mean config?"),
        (
            {"before__set": {"model.qk_norm": True}},
            "none.w16.r8 after before.w16: model.qk_norm: there True, here False",
        ),
        ({"before__set": {"run.seed": 1}}, "before.set: run.seed is set by the study itself"),
        ({"before__set": {"schedule.instances": 0}}, "schedule.instances"),
        ({"axes__rate": None}, "report: stability needs an axis rate"),
        ({"next": {}}, "a stability study foretells no width"),
        ({"set__schedule__wake_every": 48}, "lets only 2 blocks begin"),
    ],
)
def test_mistakes_are_found_before_anything_starts(tmp_path, changes, message):
    assert message in problems(tmp_path, STABILITY, **changes)


def losses(member: Member) -> list[float | None]:
    """Falls from 6 to 4 at small rates. At 2^-4 the loss of width 32 is not finite in the end, and that of width 16 has
    a hump of 1 bit; the norm makes width 32 stable there."""
    steps = numpy.linspace(0, 1, 100)
    fall = 6 - 2 * steps + 0.1 * math.log2(32 / member.config.model.width)
    if member.config.optimizer.learning_rate > 0.05 and not (
        member.config.model.qk_norm and member.config.model.width == 32
    ):
        if member.config.model.width == 32:
            return [*fall[:60].tolist(), *[None] * 40]
        return (fall + 1.0 * numpy.exp(-(((steps - 0.5) / 0.1) ** 2)) + 0.5 * (steps > 0.5)).tolist()
    return fall.tolist()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    plan = planned(tmp_path_factory.mktemp("stability"))
    for member in plan.members():
        planted.train(member)
        if member.before:
            rate = member.config.optimizer.learning_rate
            records = [
                {"step": step, "instances": 12 * step, "loss_bits_per_byte": loss, "step_seconds": 1.0, "world_size": 1}
                | {"skipped_steps": 0 if loss else 1, "attention_logit_maximum": 100 * rate * step / 100}
                | {"activation_rms": 1.0, "update_ratio_maximum": rate}
                for step, loss in enumerate(losses(member), 1)
            ]
            lines = "".join(json.dumps(record) + "\n" for record in records)
            (member.directory / "metrics.jsonl").write_text(lines)
    return plan, grid_reporting.write(plan, ["upscale", "study", "grid.yaml"])


def test_the_edge_is_where_it_was_planted(trained):
    plan, printed = trained
    page = (plan.to / "stability.md").read_text()
    found = table(page, "the edge, by width")
    assert found["none"] == {"": "none", "width 16": "-6 to -4 (4.191)", "width 32": "-6 to -4 (4.091)"}
    assert found["norm"]["width 32"] == "beyond -4 (4.091)" and found["norm"]["width 16"].startswith("-6 to -4")
    plain = table(page, "none")
    assert plain["16"]["beyond it"].startswith("rises by 0.") and plain["32"]["beyond it"] == "not finite"
    # Logits grow with the rate: at the last stable one 100 / 64, at the first that is not 100 / 16.
    assert plain["16"]["largest attention logit"] == "1.56, 6.25"
    assert plain["16"]["largest update beside its weights"] == "0.0156, 0.0625"
    # Two trainings end at 4.091 and one counts as its start, 6: the mean of these above the lowest.
    assert float(plain["32"]["sensitivity"]) == pytest.approx((6 - 4.0909) / 3, abs=2e-3)
    for name in ("edge", "attention", "activation", "update"):
        assert (plan.to / f"stability-{name}.png").read_bytes().startswith(b"\x89PNG"), name
    record = json.loads((plan.to / "stability.json").read_text())["series"]
    assert record["none"][1]["last_stable"] == -6 and record["norm"][1]["first_unstable"] is None
    assert "the edge, by width" in printed


@pytest.mark.parametrize(("leap", "stable"), [(0.0, True), (10.0, False)])
def test_noise_is_no_rise_and_a_leap_after_the_first_update_is_one(leap, stable):
    """Batches that differ by 0.1 bits, 200 of them, around a loss that falls by one bit."""
    losses = numpy.linspace(5, 4, 200) + numpy.random.default_rng(0).normal(0, 0.1, 200)
    losses[1] += leap

    steps = [
        StepRecord(step=step, instances=step, loss_bits_per_byte=loss) for step, loss in enumerate(losses.tolist())
    ]
    one = stability.trial(Run("one", Path(), {}, "", steps, [], [], 0))
    assert one.stable == stable and math.isnan(one.signals["activation_rms"])
    assert one.first == losses[0]
