"""A real study end to end: interrupted, continued, failing in part; its weights against a fresh model's."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.launch.test_supervisor import training
from tests.pace import Deadline
from tests.study import planted, tiny
from tests.test_train import Process, finish, logged, start, wait_for
from upscale.checkpoint import manifest, run_directory
from upscale.checkpoint.export import load_model
from upscale.cli import study as study_command
from upscale.distributed.world import World
from upscale.errors import UserError
from upscale.evaluation.record import read_evaluations
from upscale.files import read_json_lines
from upscale.model import parametrization
from upscale.report.comparison import instances_to_reach


def study(folder: Path, *arguments: str) -> Process:
    """`upscale study` of this checkout on one rank, its runs and results below the folder."""
    program = "from upscale.cli import main; main()"
    words = [sys.executable, "-c", program, "study", folder / "study.yaml", "--runs", folder / "runs", *arguments]
    return start(list(map(str, words)))


def weights(run: Path) -> dict[str, torch.Tensor]:
    model, _ = load_model(run, run_directory.read_config(run), None, World.single())
    return dict(model.state_dict())


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> tuple[Path, str]:
    """The study's folder after a stop in the middle of its second member, and what it printed."""
    folder = tmp_path_factory.mktemp("study")
    tiny.write(folder)
    process = study(folder, "--ranks", "1")
    wait_for(lambda: logged(folder / "runs/first-0"), process)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 75, output
    return folder, output


@pytest.fixture(scope="module")
def finished(interrupted) -> tuple[Path, str]:
    """The same after the same command again."""
    folder, _ = interrupted
    code, output = finish(study(folder, "--ranks", "1"))
    assert code == 0, output
    return folder, output


def test_a_stop_saves_the_member_and_leaves_nothing_running(interrupted):
    folder, output = interrupted
    assert "[1/4] text-0: finished after" in output and "[2/4] first-0: stopped by SIGTERM" in output, output
    assert not training(folder)
    code, output = finish(study(folder, "--dry-run"))
    lines = output.splitlines()
    assert code == 0 and "[1/4] text-0: 144 rows, 2,304 tokens, finished" in lines
    assert any(line.startswith("[2/4] first-0: 2,400 rows, 57,600 tokens, at ") for line in lines), output
    assert "[3/4] first.text-0: 144 rows, 2,304 tokens, not begun" in lines
    assert f"    upscale train --config {folder}/tiny.yaml" in lines[5] and "init.from=" in lines[5]
    assert "tokens before text: scratch 0, whole 57,600, body 57,600" in lines
    assert not (folder / "runs/first.text-0").exists()


def test_a_killed_study_leaves_nothing_running(tmp_path):
    """Its supervisor and that one's ranks end by themselves, after saving."""
    tiny.write(tmp_path)
    process = study(tmp_path, "--ranks", "1")
    wait_for(lambda: logged(tmp_path / "runs/first-0"), process)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    deadline = Deadline(60)
    while training(tmp_path):
        assert not deadline.passed(), training(tmp_path)
        time.sleep(0.1)
    assert manifest.steps(tmp_path / "runs/first-0/checkpoints")


def test_the_same_command_goes_on_and_compares(finished):
    """The figures in the JSON are those of the runs' own evaluations; nothing is trained twice."""
    folder, output = finished
    assert "text-0: finished before" in output and "first-0: continues at" in output, output
    assert "resumed from" in (folder / "runs/first-0/console.txt").read_text()
    record = json.loads((folder / "runs/tiny.json").read_text())
    (compared,) = record["compared"]
    ends, curves = {}, {}
    for arm, run in (
        ("scratch", "text-0"),
        ("whole", "first.text-0"),
        ("body", "first.text-embeddings-head-attention-0"),
    ):
        curves[arm] = read_evaluations(folder / f"runs/{run}/evaluations.jsonl")
        ends[arm] = curves[arm][-1].bits_per_character
        assert compared["arms"][arm]["0"]["final"] == ends[arm]
        assert compared["arms"][arm]["0"]["gain"] == pytest.approx(ends["scratch"] - ends[arm])
        assert [value / 16 for value in compared["curves"][arm]["0"]["tokens"]] == [0, 36, 72, 108, 144]
    losses = [row["loss_bits_per_byte"] for row in read_json_lines(folder / "runs/first-0/metrics.jsonl")]
    at_the_end = record["members"]["first-0"]["training_bits_per_token_at_the_end"]
    assert len(losses) == 200 and at_the_end == pytest.approx(sum(losses[-20:]) / 20)
    reached = instances_to_reach(curves["whole"], ends["scratch"]) * 16
    assert compared["arms"]["whole"]["0"]["reached"] == (reached if reached == reached else None)
    page = (folder / "runs/tiny.md").read_text()
    assert f"| whole | 1 of 1 | 57,600 | {ends['whole']:.3f} |" in page and "![tiny](tiny.png)" in page
    assert "fresh embeddings, head, attention" in page and "Speed-up:" in output
    page = folder / "runs/tiny.md"
    page.write_text(page.read_text() + "\n## Reading\n\nMine.\n")
    assert study_command.main([f"{folder}/study.yaml", "--runs", f"{folder}/runs", "--report"]) == 0
    assert page.read_text().endswith("\n## Reading\n\nMine.\n") and page.read_text().count("Speed-up:") == 1
    assert (folder / "runs/tiny.png").read_bytes().startswith(b"\x89PNG")


def test_an_owed_evaluation_is_done_before_its_score_is_taken(finished, tmp_path, capsys):
    """As after a request to stop in the last step of a run: nothing is reported; the same command measures what is
    owed, from the same weights, and only then compares."""
    tiny.write(tmp_path)
    shutil.copytree(finished[0] / "runs", tmp_path / "runs")
    run = tmp_path / "runs/text-0"
    before = read_evaluations(run / "evaluations.jsonl")
    planted.owe(run)
    assert len(read_evaluations(run / "evaluations.jsonl")) == len(before) - 1
    assert study_command.main([f"{tmp_path}/study.yaml", "--runs", f"{tmp_path}/runs", "--report"]) == 0
    assert "nothing to compare yet; an arm and the baseline must have finished" in capsys.readouterr().out
    code, output = finish(study(tmp_path, "--ranks", "1"))
    assert code == 0 and "[1/4] text-0: continues at 144 of 144 rows" in output, output
    assert "[1/4] text-0: finished after" in output and "[2/4] first-0: finished before" in output, output
    measured = read_evaluations(run / "evaluations.jsonl")
    assert [(one.step, one.bits_per_character) for one in measured] == [
        (one.step, one.bits_per_character) for one in before
    ]
    assert "Speed-up:" in output


def test_exactly_the_named_parts_begin_anew(finished):
    """The text stage freezes all but the head: the rest must be the first stage's, or as fresh as in scratch.

    The first stage has 300 tokens and a longer context, whose embeddings and head do not fit the text's.
    """
    folder, _ = finished
    taken = weights(folder / "runs/first-0")
    config = run_directory.read_config(folder / "runs/first.text-0")
    fresh = dict(parametrization.build(config).named_parameters())
    own = dict(parametrization.build(run_directory.read_config(folder / "runs/first-0")).named_parameters())
    for run, parts in (
        ("first.text-0", {"embeddings"}),
        ("first.text-embeddings-head-attention-0", {"embeddings", "attention"}),
    ):
        for name, weight in weights(folder / "runs" / run).items():
            part = parametrization.part_of(name)
            if part == "head":
                assert weight.shape == fresh[name].shape and not torch.equal(weight, fresh[name]), name
            else:
                assert torch.equal(weight, (fresh if part in parts else taken)[name]), (run, name)
    changed = [name for name in fresh if parametrization.part_of(name) == "attention" and "weight" in name]
    assert not any(torch.equal(fresh[name], own[name]) for name in changed if fresh[name].ndim == 2)
    scratch = weights(folder / "runs/text-0")
    assert all(torch.equal(scratch[name], fresh[name]) for name in fresh if parametrization.part_of(name) != "head")


@pytest.fixture
def signals():
    """What runs a study takes over signals for good; these tests call it in their own process."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_a_failure_leaves_out_what_needs_it_and_nothing_else(finished, tmp_path, capsys, monkeypatch, signals):
    """A run directory that cannot be used: the member fails, its follower is left out, another arm is looked at."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    more = {"config": "{folder}/tiny.yaml", "set": {"schedule.instances": 12}}
    path = tiny.write(tmp_path, stages__more=more, arms__whole=["first", "text", "more"], budget="any")
    shutil.copytree(finished[0] / "runs", tmp_path / "runs")
    blocked = tmp_path / "runs/first.text-0"
    shutil.rmtree(blocked)
    blocked.mkdir()
    (blocked / "checkpoints").write_text("a file where the folder of checkpoints should be")
    arguments = [str(path), "--runs", str(tmp_path / "runs"), "--ranks", "1"]
    shutil.copytree(finished[0] / "corpora", tmp_path / "corpora", dirs_exist_ok=True)
    assert study_command.main(arguments) == 1
    output = capsys.readouterr().out
    assert f"first.text-0: FAILED with exit code 2; the end of {blocked}/console.txt:" in output, output
    assert "cannot be used" in output and "first.text.more-0: left out, since first.text-0 has not finished" in output
    assert "[5/5] first.text-embeddings-head-attention-0: finished before" in output
    (whole,) = [line.split() for line in output.splitlines() if line.startswith("whole")]
    assert whole == ["whole", "0", "of", "1", "57,600"]


def test_a_member_that_began_with_other_settings_is_refused(finished):
    with pytest.raises(
        UserError, match=r"text-0 has begun with optimizer.learning_rate = 0.03, now 0.02: set that back"
    ):
        folder = finished[0]
        study_command.main([f"{folder}/study.yaml", "--runs", f"{folder}/runs", "optimizer.learning_rate=0.02"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "model.width=64"], "--only names no arm; allowed: scratch, whole, body"),
        (["--only", "scrach"], "--only: no arm scrach; did you mean scratch?"),
        (["--ranks", "0"], "--ranks 0: must be at least 1"),
        (["--ranks", "5", "--dry-run"], "a stage has data.lanes = 4"),
        (["--slurm", "--report"], "submits the report itself"),
        (["--dry-run", "model.widht=3"], "stage text: override 'model.widht=3': model.widht: unknown key"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path, arguments, message):
    with pytest.raises(UserError) as raised:
        study_command.main([str(tiny.write(tmp_path)), *arguments])
    assert message in str(raised.value)


def test_a_report_of_nothing_says_so(tmp_path, capsys):
    assert study_command.main([str(tiny.write(tmp_path)), "--report", "--runs", str(tmp_path / "runs")]) == 0
    assert "nothing to compare yet" in capsys.readouterr().out
