"""What `status` and `report` make of a run: a page or a table, or one clear error; and a terminal obeys nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import hostile
from tests.report.made import config_text, make_run, score_line, step_line
from upscale.cli import report as report_command
from upscale.cli import status as status_command
from upscale.report import page
from upscale.report.runs import read_runs

STEPS = [step_line(step, spikes=0) for step in (10, 20, 30)]
SCORES = [score_line("dyck", 2.0), score_line("wp", 4.0, split="validation", digest="abc")]
TEXT = {"task": "wp", "split": "excerpt", "positions": [1, 2], "bits_by_position": [7.0, 6.0], "calibration_error": 0.1}
TEXT |= {"calibration_counts": [4, 2], "calibration_confidence": [0.1, 0.3], "calibration_accuracy": [0.0, 0.5]}
LEARNT = [
    {"step": 10 * i, "instances": 320 * i, "distances": [4, 8], "induction_bits": [8.0, 7.0]}
    | {"copy_accuracy": [0.1, 0.0], "needle_recall": [0.5, None], "texts": [TEXT]}
    for i in (1, 2)
]
EVENT = {"time": "2026-01-02T03:04:05+0000", "job": "17", "verb": "train", "restart": 0, "event": "start"}
EVENTS = [EVENT | {"nodes": "n1", "ranks": 4}, EVENT | {"event": "lost", "nodes": "n2"}]
CONFIG = json.loads(config_text("hostile")) | {"run": {"name": "hostile", "seed": 0, "steps": None}}
JOBS = [{"kind": "finetune", "job": "17", "step": 5}]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    path = make_run(tmp_path_factory.mktemp("runs") / "hostile", metrics=STEPS, scores=SCORES)
    (path / "slurm").mkdir()
    return path


def lines(records) -> bytes:
    records = records if isinstance(records, list) else [records]
    return "".join(json.dumps(record) + "\n" for record in records).encode()


FILES = {
    "metrics.jsonl": STEPS,
    "evaluations.jsonl": SCORES,
    "diagnostics.jsonl": LEARNT,
    "slurm/events.jsonl": EVENTS,
    "slurm/jobs.jsonl": JOBS,
}


@st.composite
def run_files(draw) -> dict[str, bytes]:
    """The files of a run, one of them with other records, or damaged."""
    content = {name: lines(records) for name, records in FILES.items()}
    content["config.yaml"] = yaml.safe_dump(CONFIG).encode()
    name = draw(st.sampled_from(sorted(content)))
    if draw(st.booleans()):
        content[name] = draw(hostile.damaged(content[name]))
    elif name == "config.yaml":
        content[name] = yaml.safe_dump(draw(hostile.changed(CONFIG))).encode()
    else:
        content[name] = lines(draw(hostile.changed(FILES[name])))
    return content


def write(run: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (run / name).write_bytes(content)


def obeys_nothing(output: str) -> bool:
    """Printable characters, spaces and ends of lines only."""
    return all(character.isprintable() or character in "\n\t" for character in output)


@given(files=run_files())
def test_status_of_any_run(run, capsys, files):
    write(run, files)
    hostile.ends_well(status_command.main, ["--run", str(run)])
    assert obeys_nothing(capsys.readouterr().out)


@given(files=run_files())
def test_pages_of_any_run(run, files):
    """All but the drawing, which the next test does for fewer."""
    write(run, files)
    runs = hostile.ends_well(read_runs, [run], also=(ValueError,))
    if runs:
        shown = page.build(runs, [])
        assert shown.lower().count("<script") == 1
        shown.encode()


@settings(max_examples=settings.default.max_examples // 10)  # each draws a dozen pictures
@given(files=run_files())
def test_reports_of_any_run(run, tmp_path_factory, capsys, files):
    write(run, files)
    hostile.ends_well(report_command.main, [str(run), "--to", str(tmp_path_factory.getbasetemp() / "report")])
    assert obeys_nothing(capsys.readouterr().out)


HOSTILE_NAMES = ["\x1b]0;title\x07\x1b[2J", "<script>alert(1)</script>", "$\\frac{", "\ud800", "\u202egnp.exe", "a\nb"]


def test_hostile_names(tmp_path, capsys):
    """Of a run, its tasks, nodes and versions, in the page, the pictures and on the terminal."""
    every = "".join(HOSTILE_NAMES)
    scores = [score_line(name, 3.0) for name in HOSTILE_NAMES] + [score_line("wp", None, skipped=every)]
    path = make_run(tmp_path / "run", metrics=[step_line(step, spikes=0) for step in (10, 20)], scores=scores)
    text = every.replace("\ud800", "")  # with which no config is read
    config = CONFIG | {"run": {"name": text, "steps": None}, "versions": {text: text}}
    (path / "config.yaml").write_text(json.dumps(config))
    (path / "slurm").mkdir()
    (path / "slurm" / "events.jsonl").write_bytes(
        lines([event | {"nodes": every, "reason": every} for event in EVENTS])
    )
    assert status_command.main(["--run", str(path)]) == 0
    assert report_command.main([str(path), "--to", str(tmp_path / "report")]) == 0
    assert obeys_nothing(capsys.readouterr().out)
    shown = (tmp_path / "report" / "index.html").read_text().lower()
    assert shown.count("<script") == 1 and "&lt;script&gt;alert(1)" in shown


def test_records_that_are_too_deep(tmp_path):
    path = make_run(tmp_path / "run", metrics=STEPS, scores=SCORES)
    (path / "metrics.jsonl").write_text("[" * 100_000 + "\n{}\n")
    for main, arguments in ((status_command.main, ["--run", str(path)]), (report_command.main, [str(path)])):
        with pytest.raises(status_command.UserError, match="nested too deeply"):
            main(arguments)
