"""Study files: every mistake at once, members shared between arms, and budgets, against what is written out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.study import tiny
from upscale.config import files as config_files
from upscale.errors import UserError
from upscale.evaluation.tasks import TEXTS
from upscale.study import grid, loading, members, plan, reporting, schema

SHIPPED = sorted((Path(__file__).parents[2] / "configs/studies").glob("*.yaml"))


def planned(folder: Path, overrides: list[str] = (), **changes: object) -> plan.Plan:
    path = tiny.write(folder, **changes)
    return plan.make(path, loading.load(path), list(overrides), runs=folder / "runs")


def problems(folder: Path, overrides: list[str] = (), **changes: object) -> str:
    with pytest.raises(UserError) as raised:
        planned(folder, overrides, **changes)
    return str(raised.value)


def test_stages_that_arms_share_are_one_member(tmp_path):
    found = planned(tmp_path, seeds=[0, 1])
    fresh = "first.text-embeddings-head-attention"
    names = [f"{name}-{seed}" for seed in (0, 1) for name in ("text", "first", "first.text", fresh)]
    members = found.members()
    assert [member.name for member in members] == names
    assert [member.before and member.before.name for member in members[:4]] == [None, None, "first-0", "first-0"]
    assert members[2].config.init.from_ == str(tmp_path / "runs/first-0")
    assert members[3].config.init.reinitialize == ["embeddings", "head", "attention"]
    assert [member.name for member in found.members(["scratch"])] == ["text-0", "text-1"]
    assert (members[1].instances, members[1].tokens, members[2].tokens) == (2400, 57600, 144 * 16)
    assert [found.tokens_before(arm, "text") for arm in ("scratch", "whole", "body")] == [0, 57600, 57600]


def test_seeds_are_equal_in_all_arms_and_differ_between_stages(tmp_path):
    members = {member.name: member.config.run.seed for member in planned(tmp_path, seeds=[0, 1]).members()}
    assert members["text-0"] == members["first.text-0"] == members["text-1"] - 1
    assert members["first-0"] != members["text-0"]


def test_overrides_reach_every_stage_and_a_stages_own_settings_win_over_the_studys(tmp_path):
    found = planned(tmp_path, ["model.width=64"], set__model={"context": 20}, arms__body=None).members()
    assert {member.config.model.width for member in found} == {64}
    assert [member.config.model.context for member in found] == [20, 24, 20]


def test_an_arm_may_set_what_its_stage_does_otherwise(tmp_path):
    """It wins over the stage and the study; the command line wins over all. Equal settings are one member."""
    slow = {"stage": "text", "set": {"optimizer": {"learning_rate": "1e-3"}}}
    narrow = {"stage": "first", "set": {"schedule.warmup": 12, "data.control": "shuffled"}}
    changes = {"arms__slow": ["first", slow], "arms__narrow": [narrow, slow]}
    found = planned(tmp_path, **changes)
    names = [member.name for member in found.members(["slow", "narrow"])]
    label = "first-data.control_shuffled-schedule.warmup_12"
    text = "text-optimizer.learning_rate_0.001-0"
    assert names == ["first-0", f"first.{text}", f"{label}-0", f"{label}.{text}"]
    rates = {arm: found.member(arm, 0, "text").config.optimizer.learning_rate for arm in ("whole", "slow", "narrow")}
    assert rates == {"whole": 3e-2, "slow": 1e-3, "narrow": 1e-3}
    first = found.member("narrow", 0, "first").config
    assert (first.schedule.warmup, first.data.control) == (12, "shuffled")
    assert found.member("slow", 0, "text").config.run.seed == found.member("whole", 0, "text").config.run.seed
    assert "optimizer.learning_rate 0.001)" in reporting.description(found, "slow")
    overridden = planned(tmp_path, ["optimizer.learning_rate=0.5"], **changes)
    assert overridden.member("slow", 0, "text").config.optimizer.learning_rate == 0.5


def test_what_arms_set_names_their_run_directories_apart():
    """By whole keys, of which two may end in one word, in one order."""
    settings = [{"optimizer.kind": "one"}, {"data.kind": "one"}, {"data.kind": "one", "run.minutes": 9}]
    settings += [dict(reversed(settings[2].items()))]
    labels = [plan._differences(schema.Step(stage="text", set=each)) for each in settings]
    assert len(set(map(tuple, labels[:3]))) == 3 and labels[2] == labels[3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"evaluation.slices": 3}, "arms.other[1].set: evaluation.slices must be the same for all arms"),
        ({"model": {"context": 8}}, "arms.other[1].set: model.context must be the same for all arms"),
        ({"run.seed": 3}, "arms.other[1].set: run.seed is set by the study itself"),
        ({"data.corpora": [{"path": "x"}]}, "arms.other[1].set.data.corpora"),
        ({"run.name": "a/b"}, "arms.other[1].set.run.name"),
        ({"optimizer.rate": 3}, "stage text: override 'optimizer.rate=3': optimizer.rate: unknown key"),
        ({"schedule.instances": 288}, "tokens in text: scratch 2,304, whole 2,304, body 2,304, other 4,608"),
    ],
)
def test_what_an_arm_may_not_set(tmp_path, settings, message):
    assert message in problems(tmp_path, arms__other=["first", {"stage": "text", "set": settings}])


def test_a_stage_that_arms_pass_on_unequal_budgets_counts_as_unequal(tmp_path):
    less = {"stage": "first", "set": {"schedule.instances": 1200}}
    changes = {"arms__other": [less, "text"]}
    assert "scratch 0, whole 57,600, body 57,600, other 28,800" in problems(tmp_path, **changes)
    found = planned(tmp_path, **changes, budget="any")
    assert found.tokens_before("other", "text") == 28_800


def test_mistakes_of_form_come_all_at_once_with_the_nearest_key(tmp_path):
    changes = {
        "stages__first": {"confg": "x", "config": "y", "set": {"modelwidth": 3}},
        "arms__whole": [{"stage": "first", "reinit": []}, {"stage": "text", "reinitialize": ["heads"]}],
        "seeds": ["zero"],
        "compares": [],
    }
    text = problems(tmp_path, **changes)
    assert text.startswith(f"6 problems in the study {tmp_path / 'study.yaml'}:")
    assert "first.confg: unknown key; did you mean config? allowed: config, set, reinitialize, rows, like" in text
    assert "arms.whole[0].reinit: unknown key; did you mean reinitialize? allowed: stage, reinitialize" in text
    assert "arms.whole[1].reinitialize[0]: input should be 'embeddings', 'head'" in text and "given 'heads'" in text
    assert "stages.first.set.modelwidth: not a name" in text
    assert "seeds[0]: " in text and "compares: unknown key; did you mean compare?" in text


def test_a_setting_without_a_section_is_refused(tmp_path):
    assert "stages.first.set.width: not a name; it must be section.key" in problems(
        tmp_path, stages__first__set={"width": 3}
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms__whole": ["frist", "text"]}, r"arms.whole[0]: no stage frist; did you mean first?"),
        ({"arms__whole": ["first", "text", "first"]}, "arms.whole[2]: stage first twice in one arm"),
        ({"arms__body": ["first", "text"]}, "arms.body: is the same chain as arms.whole"),
        ({"arms": {"scratch": ["text"], "other": ["text"]}}, "stages.first: no arm uses it"),
        ({"baseline": "scrach"}, "baseline: no arm scrach; did you mean scratch?"),
        ({"compare": [{"stage": "first", "task": "wp"}]}, "compare[0].stage: first must be in the baseline"),
        ({"seeds": [1, 1]}, "seeds: [1, 1] names a seed twice"),
        ({"arms__scratch": [{"stage": "text", "reinitialize": ["head"]}]}, "begins with random weights anyway"),
    ],
)
def test_names_that_do_not_exist_or_say_nothing(tmp_path, changes, message):
    assert message in problems(tmp_path, **changes)


def test_mistakes_of_every_member_are_found_before_anything_starts(tmp_path):
    """Two stages' configs at once; then what only shows when configs are good."""
    text = problems(tmp_path, stages__first__set={"model.widht": 3}, stages__text__config="{folder}/tiny.yml")
    assert text.startswith("2 problems")
    assert "stage first: override 'model.widht=3': model.widht: unknown key; did you mean width?" in text
    assert f"stage text: no config file {tmp_path}/tiny.yml; did you mean {tmp_path}/tiny.yaml?" in text
    text = problems(
        tmp_path,
        stages__text__set__data={"kind": "corpus", "corpora": [{"path": "nowhere"}, {"path": "{folder}/runs"}]},
        stages__text__reinitialize=["head"],
    )
    assert "stage text: data.corpora: nowhere is not a prepared corpus: there is no such folder" in text
    assert f"stage text: data.corpora: {tmp_path}/runs is not a prepared corpus" in text
    assert "stage text after first: model.vocabulary: there 300, here 256" in text
    assert "stage text after first: model.context: there 24, here 16" in text
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compare": [{"stage": "text", "task": "linux"}]}, "linux is compared, but not measured"),
        (
            {"stages__text__set__evaluation": {"every": 36, "tasks": ["wp"]}},
            "wp (validation) is compared, but wp (excerpt) measured",
        ),
        (
            {"stages__text__set__evaluation": {"every": 0, "tasks": ["wp"]}},
            "wp is compared, but not measured: name it in evaluation.tasks and set evaluation.every (now 0)",
        ),
        ({"set": {"run.seed": 3}}, "set: run.seed is set by the study itself"),
        ({"stages__text__set__init": {"from": "x"}}, "stages.text.set: init.from is set by the study itself"),
        ({"stages__text__set__schedule": {"wake_every": 48}}, "lets only 2 blocks begin, but 6 were trained"),
        (
            {"stages__first__set__data.sources": [{"kind": "nca", "grid": 4, "band": [1.9, 2.0]}]},
            "stage first: data.sources",
        ),
    ],
)
def test_what_would_fail_hours_later_or_compare_nothing(tmp_path, changes, message):
    assert message in problems(tmp_path, **changes)


def test_the_compared_text_must_be_held_out(tmp_path):
    evaluation = {"every": 36, "slices": 20, "tasks": ["wp"], "data_dir": "{folder}/texts"}
    (tmp_path / "texts").mkdir()
    tiny.write(tmp_path)

    (tmp_path / "texts/wp").write_bytes(TEXTS["wp"].load().data.tobytes()[:4500])
    metric = [{"stage": "text", "task": "wp", "split": "data_dir"}]
    text = problems(tmp_path, stages__text__set__evaluation=evaluation, compare=metric)
    assert "stage text: wp is evaluated on text that is trained on" in text
    seen = {"kind": "corpus", "corpora": [{"path": "{folder}/corpora/wp"}], "split": "validation"}
    text = problems(tmp_path, stages__first__set={"data": seen, "schedule.instances": 2400})
    assert "1 problem" in text and "stage first: wp is evaluated on text that is trained on" in text


def test_budgets_are_equal_or_none(tmp_path):
    """57,600 tokens of `first` against 2400 x 16 of a second source; a stage that all arms pass does not count."""
    second = {"config": "{folder}/tiny.yaml", "set": {"schedule.instances": 2400, "model.context": 16}}
    changes = {"stages__second": second, "arms__other": ["second", "text"]}
    text = problems(tmp_path, **changes)
    assert (
        "before text, beside stages that all of them have: scratch 0, whole 57,600, body 57,600, other 38,400" in text
    )
    second["set"]["schedule.instances"] = 3600
    assert planned(tmp_path, **changes).tokens_before("other", "text") == 57600
    second["set"]["schedule.instances"] = 1200
    assert planned(tmp_path, **changes, budget="any")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_studies_are_complete_but_for_their_corpora(path, monkeypatch):
    """All that is wrong in a fresh clone is that the corpora have to be prepared; most grids need none."""
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setattr(
        members.index, "read", lambda folder: (_ for _ in ()).throw(UserError(f"{folder} is not prepared"))
    )
    study = loading.load(path)
    if isinstance(study, schema.Grid) and study.before is None and not study.finetune:
        assert grid.make(path, study).members()
        return
    with pytest.raises(UserError) as raised:
        (grid if isinstance(study, schema.Grid) else plan).make(path, study)
    lines = str(raised.value).splitlines()[1:]
    assert lines and all("corpora/" in line and "is not prepared" in line for line in lines), raised.value


@pytest.mark.parametrize(
    "value",
    [
        *("3e4", "3e-4", "[x", "{", "a: b", "#", "# a", " a ", "", "null", "yes", "1_000", "0x1F", "1:30", "~"),
        *("2020-01-01", "'", '"', "é", "\U0001f600", "*x", "&x", "!x", "%", "@", "plain", "a\nb", "-", "inf", "<<"),
        *(3e4, 3e-4, 1e-30, 0.1, 7, True, None, [1, "3e4", ["[x"]], {"kind": "3e4", "weight": 3e-4}),
    ],
)
def test_a_setting_of_a_study_arrives_as_it_was_given(value):
    """Through the words that training is given, by the loader that reads them there: against the value itself."""
    (word,) = members.as_overrides({"section.key": value})
    schema: dict = {}
    assert config_files._apply(schema, word, {}) is None
    found = schema["section"]["key"]
    assert found == value and type(found) is type(value)
