"""What is read of run directories: damaged lines, repeated steps, folders and links; against files made by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.report.made import make_run, score_line, shown, step_line
from upscale import report
from upscale.report.runs import read_runs


def test_a_half_written_last_line_is_ignored(tmp_path):
    run = make_run(tmp_path / "run", scores=[score_line("dyck", 0.888)])
    whole = shown([run], tmp_path / "out").read_bytes()
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        with open(run / name, "a") as file:
            file.write('{"step": 110, "instances": 35')
    assert shown([run], tmp_path / "out").read_bytes() == whole


@pytest.mark.parametrize(
    ("name", "broken", "said"),
    [
        ("metrics.jsonl", '{"step": 20, "inst', "line 2 is not JSON"),
        ("metrics.jsonl", "[1, 2]", "line 2 is not a JSON object"),
        ("metrics.jsonl", '{"step": 20, "instances": 640}', "line 2: the field loss_bits_per_byte is missing"),
        ("metrics.jsonl", json.dumps(step_line(20, loss_bits_per_byte="low")), "line 2: the field loss_bits_per_byte"),
        ("metrics.jsonl", json.dumps(step_line(20) | {"step": None}), "line 2: the field step is None"),
        ("evaluations.jsonl", '{"task": "dyck"', "line 2 is not JSON"),
        ("evaluations.jsonl", json.dumps(score_line("dyck", 1.0) | {"task": 3}), "line 2: the field task is 3"),
        ("evaluations.jsonl", json.dumps(score_line("dyck", True)), "line 2: the field bits_per_character is True"),
    ],
)
def test_a_damaged_line_is_an_error_with_file_and_line(tmp_path, name, broken, said):
    run = make_run(tmp_path / "run", scores=[score_line("dyck", 0.9, 0), score_line("dyck", 0.8)])
    lines = (run / name).read_text().splitlines()
    (run / name).write_text("\n".join([lines[0], broken, *lines[1:]]) + "\n")
    with pytest.raises(ValueError, match=f"{re.escape(str(run / name))}.*{re.escape(said)}"):
        report.write([run], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_steps_repeated_after_a_restart_replace_their_first_version(tmp_path):
    lost = [step_line(step, loss_bits_per_byte=50.0) for step in (30, 40)]
    metrics = [step_line(10), step_line(20), *lost, step_line(30, world_size=1), step_line(40, world_size=1)]
    (run,) = read_runs([make_run(tmp_path / "run", metrics=metrics, scores=[score_line("dyck", 0.9)] * 2)])
    assert run.column("step").tolist() == [10, 20, 30, 40]
    assert run.column("loss_bits_per_byte").max() < 8
    assert run.world_sizes == [2, 1] and run.world_changes == [2] and run.seconds == 80
    assert len(run.evaluations) == 1


def test_a_folder_stands_for_its_runs(tmp_path):
    """A study's folder, with a run that has not begun and a link to one elsewhere; and a run in a folder of no run."""
    made = [make_run(tmp_path / "study" / name) for name in ("b-0", "a-0")]
    (make_run(tmp_path / "study" / "c-0") / "metrics.jsonl").unlink()
    (tmp_path / "study" / "linked").symlink_to(make_run(tmp_path / "elsewhere" / "d-0"))
    (tmp_path / "study" / "notes").mkdir()
    assert [run.path for run in read_runs([tmp_path / "study", made[0]])] == [made[1], made[0]]
    waiting: list[Path] = []
    assert len(read_runs([tmp_path / "study"], waiting)) == 2 and waiting == [tmp_path / "study" / "c-0"]
    (tmp_path / "nothing" / "inside").mkdir(parents=True)
    with pytest.raises(ValueError, match="nothing is not a run directory"):
        read_runs([tmp_path / "nothing"])
    for run in made:
        (run / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match="no run in .*study has metrics yet"):
        read_runs([tmp_path / "study"])


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "evaluations.jsonl", "diagnostics.jsonl"])
def test_no_file_of_a_run_leads_out_of_it(tmp_path, name):
    run = make_run(tmp_path / "run", scores=[score_line("dyck", 0.9)])
    (tmp_path / "secret").write_text("secret: true\n")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=f"{name} is a link that leads out of the run"):
        read_runs([run])


def test_mistakes_say_what_was_given_and_what_is_allowed(tmp_path):
    run = make_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    unstarted = make_run(tmp_path / "unstarted")
    (unstarted / "metrics.jsonl").write_text('{"step": 1')
    crooked = make_run(tmp_path / "crooked")
    (crooked / "config.yaml").write_text("run: [")
    for runs, to, said in (
        ([], "out", "no run was given"),
        ([tmp_path / "missing"], "out", "missing is not a run directory: it is no directory"),
        ([tmp_path / "empty"], "out", "empty is not a run directory"),
        ([unstarted], "out", "unstarted has no metrics yet"),
        ([run, crooked], "out", "config.yaml is not YAML"),
        ([run], "file", "cannot write the report to .*file"),
        ([run], "file/below", "cannot write the report to .*below"),
    ):
        with pytest.raises(ValueError, match=said):
            report.write(runs, tmp_path / to)
