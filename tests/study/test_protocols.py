"""Protocols of procedural pre-training: what is carried over, mixtures, budgets, and the figures of their reports."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest

from tests.study import planted, tiny
from upscale import planning
from upscale.errors import UserError
from upscale.study import efficiency, loading, plan, reporting, results
from upscale.study.members import Member

TEXT = {
    "config": "{folder}/tiny.yaml",
    "reinitialize": ["embeddings", "head"],
    "set": {"schedule.instances": 1200, "evaluation": {"every": 120, "slices": 40, "tasks": ["toy"]}},
}
FIRST = {"config": "{folder}/tiny.yaml", "set": {"schedule.instances": 600, "data.sources": [{"kind": "dyck"}]}}
PROTOCOL = {
    "stages": {"first": FIRST, "second": FIRST, "text": TEXT},
    "arms": {
        "scratch": ["text"],
        "whole": ["first", "text"],
        "mean": ["first", {"stage": "text", "reinitialize": [], "rows": {"embeddings": "mean", "head": "sampled"}}],
        "mixed": ["first", {"stage": "text", "mix": {"ff": "second"}}],
        "control": ["first", {"stage": "text", "control": "gaussian"}],
    },
    "compare": [{"stage": "text", "task": "toy", "split": "generated"}],
    "substitute": {"stage": "text", "instances": [960, 600], "arms": ["scratch", "whole"]},
}


def planned(folder: Path, **changes: object) -> plan.Plan:
    path = tiny.write(folder, **copy.deepcopy({**PROTOCOL, **changes}))
    return plan.make(path, loading.load(path), [], runs=folder / "runs")


def problems(folder: Path, **changes: object) -> str:
    with pytest.raises(UserError) as raised:
        planned(folder, **changes)
    return str(raised.value)


def test_each_way_to_begin_is_a_member_of_its_own_on_the_same_rows(tmp_path):
    found = planned(tmp_path)
    members = {member.name: member for member in found.members()}
    own = ["first.text-embeddings_mean-head_sampled-whole-0", "first.text-ff_of_second-0", "first.text-gaussian-0"]
    assert list(members)[:7] == ["text-0", "first-0", "first.text-0", own[0], "second-0", own[1], own[2]]
    assert len({member.config.run.seed for name, member in members.items() if "text" in name}) == 1
    mean, mixed, control = (members[name].config.init for name in own)
    assert (mean.rows.embeddings, mean.rows.head, mean.rows.positions) == ("mean", "sampled", "carried")
    assert mean.reinitialize == [] and control.control == "gaussian"
    assert mixed.mix == {"ff": str(tmp_path / "runs/second-0")} and mixed.from_ == str(tmp_path / "runs/first-0")
    assert [member.name for member in members[own[1]].needs] == ["first-0", "second-0"]
    # Weights of two stages cost the tokens of both.
    assert [found.tokens_before(arm, "text") for arm in ("scratch", "whole", "mixed")] == [0, 9600, 19200]


def test_smaller_budgets_are_trainings_of_their_own(tmp_path):
    found = planned(tmp_path)
    smaller = {member.name: member for member in found.members() if "_at_" in member.name}
    assert list(smaller) == ["text_at_600-0", "first.text_at_600-0", "text_at_960-0", "first.text_at_960-0"]
    assert {member.instances for member in smaller.values()} == {600, 960}
    (seed,) = {member.config.run.seed for member in smaller.values()}
    assert seed == found.chains["scratch", 0][0].config.run.seed
    assert [one.name for one in found.members(["whole_at_600"])] == ["first-0", "first.text_at_600-0"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"arms__mixed": ["first", {"stage": "text", "mix": {"ff": "secondd"}}]},
            "no stage secondd; did you mean",
        ),
        ({"arms__mixed": ["first", {"stage": "text", "mix": {"fff": "second"}}]}, "arms.mixed[1].mix.fff"),
        (
            {"arms__scratch": [{"stage": "text", "control": "shuffled"}]},
            "arms.scratch[0].control: the first stage",
        ),
        ({"arms__control": ["first", {"stage": "text", "control": "gauss"}]}, "input should be 'none', 'shuffled' or"),
        (
            {"arms__mean": ["first", {"stage": "text", "rows": {"head": "median"}}]},
            "rows.head: input should be 'carried', 'matched', 'mean'",
        ),
        ({"stages__second__like": "frist"}, "stages.second.like: no stage frist; did you mean first?"),
        ({"substitute__stage": "txt"}, "substitute.stage: no stage txt; allowed: first, second, text"),
        ({"substitute__stage": "first"}, "substitute.stage: first is not compared"),
        ({"substitute__arms": ["scrach"]}, "substitute.arms: no arm scrach"),
        ({"substitute__instances": [600, 600]}, "names a budget twice"),
        ({"substitute__instances": [1200]}, "substitute.instances: 1200 is not below the 1,200 of the whole stage"),
        ({"arms__whole": ["first", "text", "second"]}, "text is not the last stage of arms.whole"),
        (
            {"arms__whole": ["first", {"stage": "text", "set": {"schedule.instances": 900}}]},
            "arms.whole[1].set: schedule.instances is what substitute varies",
        ),
        ({"arms__whole_at_600": ["second", "text"]}, "substitute makes an arm of this name"),
        (
            {"stages__second": {**FIRST, "set": {**FIRST["set"], "model.width": 64}}, "budget": "any"},
            "stage text after second: model.width: there 64, here 32",
        ),
        (
            {"arms__mean": ["first", {"stage": "text", "rows": {"head": "mean"}}]},
            "init.rows.head: mean, but head is in init.reinitialize",
        ),
    ],
)
def test_mistakes_are_found_before_anything_starts(tmp_path, changes, message):
    assert message in problems(tmp_path, **changes)


def ends(member: Member, task: str, seen: float) -> list[float]:
    """5 - 0.3 ln(rows) at the end of every training, 0.06 lower after a first stage; on the way 1 bit higher."""
    end = 5 - 0.3 * math.log(member.instances) - 0.06 * (member.before is not None)
    return [end + (1.0 if seen < member.instances else 0.0)] * 20


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> plan.Plan:
    found = planned(tmp_path_factory.mktemp("protocol"))
    for member in found.members():
        planted.train(member, ends if "text" in member.name else None)
    return found


def test_text_is_saved_as_the_papers_define_it(trained):
    """The arm needs e^(-0.06 / 0.3) of the baseline's 1200 rows, found on the line between 960 and 1200."""
    (result,) = results.collect(trained)
    found = efficiency.collect(trained, result)
    one = found["whole"][0]
    first, text = (member.config for member in trained.chains["whole", 0])
    base, before = 1200 * 16, 600 * 16
    needed = base * math.exp(-0.2)
    assert one.on_runs and not one.bound and one.text == pytest.approx(needed)
    assert one.saved == pytest.approx(1 - math.exp(-0.2))
    assert one.saved_in_all == pytest.approx(1 - (before + needed) / base)
    assert one.rate_of_substitution == pytest.approx((base - needed) / before)
    spent, whole = planning.run_flops(first) + planning.run_flops(text) * math.exp(-0.2), planning.run_flops(text)
    assert one.saved_flops == pytest.approx(1 - spent / whole)
    # Without smaller budgets the arm is as low on its own curve only near its end, one bit above it before.
    control = found["control"][0]
    assert not control.on_runs and control.text == pytest.approx(16 * (1080 + 120 * 1 / 1.06), rel=0.06)
    assert "scratch" not in found


def test_the_least_budget_that_is_enough_is_only_a_bound():
    assert efficiency.tokens_to([(100, 2.0), (200, 1.5)], 2.5) == (100, True)
    tokens, bound = efficiency.tokens_to([(100, 3.0), (400, 1.0)], 2.0)
    assert tokens == pytest.approx(200) and not bound  # halfway in the logarithm
    assert math.isnan(efficiency.tokens_to([(100, 3.0)], 2.0)[0]) and math.isnan(efficiency.tokens_to([], 2.0)[0])


def test_the_report_shows_what_is_known(trained):
    shown = reporting.write(trained, ["upscale", "study", "study.yaml"])
    assert "what the stages before are worth" in shown
    page = (trained.to / "tiny.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith("| whole |") and "runs" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:2] == ["whole", "9,600"] and cells[4:6] == ["runs", "+18.1"]
    assert "rows of embeddings mean, rows of head sampled" in page and "ff of second-0" in page
    assert "weights gaussian" in page
    record = json.loads((trained.to / "tiny.json").read_text())["compared"][0]["efficiency"]
    assert record["whole"]["0"]["saved"] == pytest.approx(1 - math.exp(-0.2))
