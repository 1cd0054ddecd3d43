"""Pre-trained against scratch, from run directories of known numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml

from tests.cli.test_commands import upscale_command
from tests.report.made import score_line, step_line
from upscale import report
from upscale.evaluation.record import EvaluationRecord
from upscale.report import comparison
from upscale.report.runs import read_runs

WP = [8.0, 5.0, 4.0, 3.5]
"""Bits per character from scratch after 0, 1000, 2000 and 3000 instances."""


def run_directory(place: Path, name: str, origin: str | None, scores: dict[str, list[float]], **sections: dict) -> Path:
    folder = place / name
    folder.mkdir()
    config = {
        "run": {"name": name, "seed": 0},
        "model": {"width": 64, "depth": 4},
        "data": {"kind": "corpus", "corpora": [{"path": "data/wp", "weight": 1.0}], "split": "train"},
        "init": {"from": origin},
    }
    for key, change in sections.items():
        config[key] = {**config.get(key, {}), **change}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.jsonl").write_text(json.dumps(step_line(1)) + "\n")
    rows = [
        score_line(task, bits, instances=1000 * place, step=place, standard_error=0.03)
        for task, column in scores.items()
        for place, bits in enumerate(column)
    ]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def runs(tmp_path):
    tuned = run_directory(tmp_path, "tuned", "runs/pre", {"dyck": [1.0, 1.5, 1.6, 1.7], "wp": [6.0, 4.0, 3.0, 2.9]})
    scratch = run_directory(tmp_path, "scratch", None, {"dyck": [8.0, 7.0, 7.0, 7.0], "wp": WP})
    return [tuned, scratch]


def test_the_numbers_of_a_pair(runs):
    """Scratch's best, 3.5 after 3000, lies half-way between the pre-trained 4.0 at 1000 and 3.0 at 2000."""
    (pair,) = comparison.pairs(read_runs(runs[::-1]))
    assert (pair.pretrained.name, pair.scratch.name) == ("tuned", "scratch")
    assert comparison.trained_task(pair) == ("wp", "generated")
    found = comparison.compare(pair, ("wp", "generated"))
    assert (found.scratch_best, found.scratch_best_instances) == (3.5, 3000)
    assert found.pretrained_reaches == pytest.approx(1500) and found.saved == pytest.approx(1500)
    assert found.gain == pytest.approx(0.6) and found.final_margin == pytest.approx(2 * 0.03 * math.sqrt(2))
    assert math.isnan(found.scratch_reaches)
    assert comparison.compare(pair, ("dyck", "generated")).forgotten == pytest.approx(0.7)


def test_sentences_and_page_say_so(runs, tmp_path):
    output = upscale_command("report", *runs, "--to", tmp_path / "page")
    assert "Pre-training helped: 0.600 bits less (two standard errors: 0.085)." in output
    assert "errors are over slices of the text. Trainings with other seeds may differ by more." in output
    assert "it takes 1,500 instances to reach the best of the run from scratch (3.500 after 3,000)" in output
    assert "Of 1 other datasets 1 got worse than before fine-tuning: dyck (+0.70); 0 got better." in output
    page = (tmp_path / "page/index.html").read_text()
    assert "Pre-trained against scratch" in page and "tuned against scratch" in page and "+0.600 ± 0.085" in page
    assert "data/wp" in page


@pytest.mark.parametrize(
    ("final", "words"),
    [
        (3.55, "The difference, -0.050, is within two standard errors (0.085): level."),
        (3.9, "Pre-training hurt: 0.400 bits more (two standard errors: 0.085)."),
    ],
)
def test_a_difference_that_is_not_there_or_goes_the_other_way_is_said(runs, tmp_path, final, words):
    """And when the pre-trained run never gets as low, how soon scratch reaches its best: half-way from 4.0 to 3.5
    lies 3.75."""
    tuned = run_directory(tmp_path, "other", "runs/pre", {"wp": [6.0, 4.0, 3.75, final]})
    (pair,) = comparison.pairs(read_runs([tuned, runs[1]]))
    text = comparison.sentences(pair)
    assert words in " ".join(text)
    if final == 3.9:
        assert "3.500, was never reached; their own best, 3.750, takes 2,500 from scratch" in " ".join(text)


def test_what_is_paired(runs, tmp_path):
    """The same seed first; never another model or other texts; nothing without a run from scratch."""
    same = run_directory(tmp_path, "same", None, {"wp": WP}, run={"name": "same", "seed": 1})
    seeded = run_directory(tmp_path, "seeded", "runs/pre", {"wp": WP}, run={"name": "seeded", "seed": 1})
    wide = run_directory(tmp_path, "wide", "runs/pre", {"wp": WP}, model={"width": 128})
    texts = run_directory(tmp_path, "texts", "runs/pre", {"wp": WP}, data={"corpora": [{"path": "data/linux"}]})
    found = comparison.pairs(read_runs([*runs, same, seeded, wide, texts]))
    assert [(pair.pretrained.name, pair.scratch.name) for pair in found] == [("tuned", "scratch"), ("seeded", "same")]
    assert comparison.pairs(read_runs([runs[0]])) == []
    assert "Pre-trained against scratch" not in report.write([runs[0]], tmp_path / "page").read_text()


def test_scores_of_the_same_slices_are_compared_in_pairs(tmp_path):
    """Two models 0.1 apart on every group are surely apart, however hard the groups; on other slices they are not."""
    groups = [2.0, 3.0, 4.0, 5.0]
    lower = [bits - 0.1 + sign for bits, sign in zip(groups, (0.01, -0.01, 0.01, -0.01), strict=True)]
    same = {"digest": "d", "samples": 400, "standard_error": 0.2}
    one = EvaluationRecord(**score_line("wp", 3.5, group_bits_per_character=groups, **same))
    other = EvaluationRecord(**score_line("wp", 3.4, group_bits_per_character=lower, **same))
    spread = math.sqrt(4 * 0.01**2 / 3)
    assert comparison.margin(one, other) == pytest.approx(2 * spread / 2)
    assert comparison.margin(one, other.model_copy(update={"digest": "e"})) == pytest.approx(2 * 0.2 * math.sqrt(2))
