"""A grid whose trainings go on with a text: its members, what grows, its mistakes, and a report of planted curves."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.study import planted
from tests.study.planted import SCALING, TRANSFER
from tests.study.test_grid import law, numbers, problems, table
from upscale.study import grid_reporting
from upscale.study.grid import GridPlan
from upscale.study.members import Member

WP = {
    "config": "{folder}/tiny.yaml",
    "set": {
        "data": {"kind": "corpus", "corpora": [{"path": "{folder}/corpora/wp"}], "lanes": 4},
        "schedule": {"batch": {"start": 12, "end": 12, "from": 0, "to": 0}, "wake_every": 0, "instances": 480},
        "evaluation": {"every": 120, "slices": 20, "tasks": ["wp"], "data_dir": "{folder}/corpora"},
    },
    "task": "wp",
}
SOURCES = {
    "uniform": {"set": {"data.sources": [{"kind": "uniform"}]}},
    "dyck": {"set": {"data.sources": [{"kind": "dyck"}]}},
}
WIDTHS = {name: SCALING["axes"]["width"][name] for name in ("w16", "w32")}


def planned(folder: Path, overrides: list[str] = (), **changes: object) -> GridPlan:
    given = {"axes__width": WIDTHS, "next": None, "finetune": {"wp": WP}} | changes
    return planted.planned(folder, SCALING, overrides, **given)


def test_each_training_is_followed_by_two_and_scratch_is_trained_once(tmp_path):
    """Two widths, two sources, two seeds: eight trainings, a fine-tuning of each, and one from scratch a width and
    seed, since sources do not matter to it."""
    found = planned(tmp_path, axes__source=SOURCES).members()
    tuned = [member for member in found if member.before]
    scratch = [member for member in found if ".scratch-" in member.name]
    assert len(found) == 8 + 8 + 4 and len(tuned) == 8 and len(scratch) == 4
    assert len({member.name for member in found}) == len({member.directory for member in found}) == 20
    assert "w16.uniform.wp.1200-0" in {member.name for member in tuned}
    for member in tuned:
        assert found.index(member.before) < found.index(member)
        assert member.config.init.from_ == str(member.before.directory) and member.config.data.kind == "corpus"
        twin = next(one for one in scratch if (one.config.model, one.seed) == (member.config.model, member.seed))
        assert twin.config.init.from_ is None and twin.config.schedule == member.config.schedule
        assert member.config.model.width == member.before.config.model.width
        assert member.instances == 480 and member.config.run.seed == member.seed
    some = planned(tmp_path, axes__source=SOURCES).members(["w32", "dyck"])
    assert [member.name for member in some[:3]] == ["w32.dyck-0", "w32.dyck.wp.1200-0", "w32.uniform.wp.scratch-0"]


def test_a_training_that_grew_is_fine_tuned_anew(tmp_path):
    """More rows on the command line are of the pre-training only; what was fine-tuned before stays as it was."""
    before = {member.name: member for member in planned(tmp_path).members()}
    after = {member.name: member for member in planned(tmp_path, ["schedule.instances=2400"]).members()}
    assert before.keys() - after.keys() == {f"w{width}.wp.1200-{seed}" for width in (16, 32) for seed in (0, 1)}
    assert after.keys() - before.keys() == {f"w{width}.wp.2400-{seed}" for width in (16, 32) for seed in (0, 1)}
    assert after["w16-0"].instances == 2400 and after["w16.wp.2400-0"].instances == 480


@pytest.mark.parametrize(
    ("tree", "finetune", "said"),
    [
        (SCALING, WP | {"task": "linux"}, "finetune.wp: linux is compared, but not measured"),
        (SCALING, WP | {"split": "excerpt"}, "finetune.wp: wp (excerpt) is compared, but wp (validation) measured"),
        (SCALING, WP | {"config": "{folder}/none.yaml"}, "finetune.wp: no config file"),
        (SCALING, WP | {"set": WP["set"] | {"model.width": 64}}, "finetune.wp after w16-0: "),
        (SCALING, WP | {"set": {"run.seed": 3}}, "finetune.wp.set: run.seed is set by the study itself"),
        (SCALING, WP | {"tsk": "wp"}, "finetune.wp.tsk: unknown key"),
        (TRANSFER, WP, "finetune: a transfer study compares trainings at their own rates"),
    ],
)
def test_mistakes_are_found_before_anything_starts(tmp_path, tree, finetune, said):
    assert said in problems(tmp_path, tree, finetune={"wp": finetune})


def test_fine_tuned_bits_by_width_are_in_the_report(tmp_path):
    """Planted straight lines from 8 bits to 4 after 480 rows from scratch, and from 6 to 3.5 (width 16) or 3 (width 32)
    from pre-trained weights: these reach 4 after 384 and 320 rows, so the speed-ups are 1.25 and 1.5."""

    def curve(member: Member, task: str, seen: float) -> list[float]:
        if ".wp." not in member.name:
            return law(member, task, seen)
        end = {16: 3.5, 32: 3.0}[member.config.model.width]
        begin, end = (6.0, end) if member.before else (8.0, 4.0)
        return [begin + (end - begin) * seen / 480 + 0.1 * member.seed] * 20

    plan = planned(tmp_path)
    for member in plan.members():
        split = "validation" if ".wp." in member.name else "generated"
        if member.name != "w32.wp.1200-1":
            planted.train(member, curve, split=split)
    printed = grid_reporting.write(plan, ["upscale", "study", "grid.yaml"])
    assert "11 of 12 trainings have finished." in printed
    found = table((tmp_path / "runs/scaling.md").read_text(), "fine-tuned on wp")
    assert numbers(found["16"]["pre-trained"]) == [3.55, 3.5, 3.6] and numbers(found["16"]["scratch"]) == [4.05, 4, 4.1]
    assert found["16"]["gain"] == "+0.500" and found["16"]["speed-up"] == "1.25" and found["16"]["seeds"] == "2"
    assert found["32"]["gain"] == "+1.000" and found["32"]["speed-up"] == "1.50" and found["32"]["seeds"] == "1"
    for ending in ("png", "svg"):
        assert (tmp_path / f"runs/scaling-finetune-wp.{ending}").is_file()
