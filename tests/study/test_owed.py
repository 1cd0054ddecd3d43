"""A training that owes its last evaluation has not finished, in any kind of study: no older score stands for it.

Against a study in which that training has left nothing at all.
"""

from __future__ import annotations

import copy
import shutil

import pytest

from tests.study import planted
from tests.study.test_grid import SCALING, TRANSFER, law
from tests.study.test_grid_finetuning import WIDTHS, WP
from tests.study.test_minutes import MINUTES
from tests.study.test_protocols import ends
from tests.study.test_protocols import planned as planned_chains
from tests.study.test_stability import STABILITY
from upscale.cli import study as study_command
from upscale.report import multiples
from upscale.study import efficiency, grid_reporting, results

RATES = {axis: dict([*TRANSFER["axes"][axis].items()][:3]) for axis in ("width", "rate")}
SMALL = SCALING | {"axes": {"width": WIDTHS}, "next": None}
GRIDS = {
    "scaling": (SMALL, "w16-1"),
    "fine-tuned": (SMALL | {"finetune": {"wp": WP}}, "w32.wp.1200-1"),
    "transfer": (TRANSFER | {"axes": {"recipe": {"mup": {}}, **RATES}}, "mup.w16.r6-1"),
    "minutes": (MINUTES, "fast-1"),
    "stability": (STABILITY | {"axes": {"remedy": {"none": {}}, **RATES}}, "none.w16.r6-0"),
}


@pytest.mark.parametrize("kind", GRIDS)
def test_no_grid_takes_an_older_score(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(multiples, "draw", lambda *_, **__: {})
    tree, name = copy.deepcopy(GRIDS[kind])
    plan = planted.planned(tmp_path, {key: value for key, value in tree.items() if value is not None})
    for member in plan.members():
        planted.train(member, law, split="validation" if ".wp." in member.name else "generated")
    (owing,) = [member for member in plan.members() if member.name == name]
    whole = page(plan)
    planted.owe(owing.directory)
    owed = page(plan)
    shutil.rmtree(owing.directory)
    assert owed == page(plan) != whole
    count = len(plan.members())
    assert f"{count} of {count} trainings have finished." in whole and f"{count - 1} of {count} trainings" in owed


def page(plan) -> str:
    grid_reporting.write(plan, ["upscale", "study", "grid.yaml"])
    return (plan.to / f"{plan.study.name}.md").read_text()


@pytest.mark.parametrize(("name", "arms"), [("first.text-0", {"whole"}), ("text-0", {"scratch", "whole", "control"})])
def test_no_chain_takes_an_older_score(name, arms, tmp_path):
    """Of an arm, or of the baseline, without which there is nothing to compare; nor of a smaller budget."""
    plan = planned_chains(tmp_path)
    members = {member.name: member for member in plan.members()}
    for member in members.values():
        planted.train(member, ends if "text" in member.name else None)
    (result,) = results.collect(plan)
    assert all(result.outcomes[arm] for arm in arms)
    planted.owe(members[name].directory)
    (result,) = results.collect(plan)
    assert not any(result.outcomes[arm] for arm in arms)


def test_no_smaller_budget_is_of_an_older_score(tmp_path):
    plan = planned_chains(tmp_path)
    members = {member.name: member for member in plan.members()}
    for member in members.values():
        planted.train(member, ends if "text" in member.name else None)
    (result,) = results.collect(plan)
    arm = next(name for name in plan.study.arms if name.startswith("scratch") and name != "scratch")
    smaller = plan.chains[arm, 0][-1]
    known = efficiency._ends(plan, result, "scratch", 0)
    planted.owe(smaller.directory)
    assert efficiency._ends(plan, result, "scratch", 0) == [one for one in known if one[0] != smaller.tokens] != known


def test_it_is_started_again_here_and_on_slurm(tmp_path, capsys, monkeypatch):
    plan = planted.planned(tmp_path, SCALING)
    for member in plan.members():
        planted.train(member, law)
    planted.owe(plan.cells[("w16",), 1].directory)
    monkeypatch.chdir(planted.ROOT)
    arguments = [str(tmp_path / "grid.yaml"), "--runs", str(tmp_path / "runs"), "--dry-run"]
    assert study_command.main(arguments) == 0
    shown = capsys.readouterr().out
    assert shown.count(" tokens, finished") == 9 and "w16-1: 1,200 rows, 19,200 tokens, at 1,200\n" in shown
    assert study_command.main([*arguments, "--slurm"]) == 0
    jobs = [line for line in capsys.readouterr().out.splitlines() if "sbatch" in line]
    assert len(jobs) == 2 and "--job-name=w16-1" in jobs[0] and "afterany:$job_" in jobs[1]
