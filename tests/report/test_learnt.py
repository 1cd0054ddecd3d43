"""What was learnt, and what differs between runs, on the page, against records and configs written by hand."""

from __future__ import annotations

import json

import pytest

from tests.report.made import config_text, lines_of, make_run, parse
from upscale.report import learnt, page
from upscale.report.runs import read_runs


def test_what_was_learnt_is_drawn_from_the_newest_diagnostics(tmp_path):
    """Against records written by hand: the last values are in the words, the errors in the table, an older step only in
    the picture over rows; lists that do not fit are named."""
    run = make_run(tmp_path / "w384")
    text = {"task": "wp", "split": "excerpt", "positions": [1, 2], "bits_by_position": [7.5, 6.25]}
    text |= {"calibration_error": 0.125, "calibration_counts": [8, 0]}
    text |= {"calibration_confidence": [0.05, 0.0], "calibration_accuracy": [0.25, 0.0]}
    probes = {"distances": [4, 8], "copy_accuracy": [0.5, 0.25], "needle_recall": [0.75, None], "texts": [text]}
    records = [{"step": 50 * i, "instances": 1600 * i, "induction_bits": [8.0 - i, 8.0], **probes} for i in (1, 2)]
    (run / "diagnostics.jsonl").write_text(lines_of(records))
    runs = read_runs([run])
    index = tmp_path / "index.html"
    index.write_text(page.build(runs, learnt.draw(runs, files=False)), encoding="utf-8")
    shown = index.read_text(encoding="utf-8")
    for told in (
        "Induction: bits of a repeated byte over bytes back. From first to last: w384 6 to 8.",
        "Copying: share of repeated bytes guessed right over bytes back. From first to last: w384 0.5 to 0.25.",
        "From first to last: w384 0.75 to nan.",
        "Induction while training: bits of a repeated byte over instances seen (rows). From first to last: w384 7.5",
        "wp (excerpt): use of context: bits per character over characters before. From first to last: w384 7.5 to 6",
        "share right over probability of the most likely byte. From first to last: w384 0.25 to 0.25.",
    ):
        assert told in shown, told
    assert ["w384", "100", "0.125"] in parse(index).rows
    (run / "diagnostics.jsonl").write_text(lines_of([records[0] | {"distances": [4]}]))
    with pytest.raises(
        ValueError, match="diagnostics.jsonl, line 1: lists of different lengths: distances 1, induction_b"
    ):
        read_runs([run])


def test_what_differs_between_configs_is_a_table(tmp_path):
    runs = [make_run(tmp_path / name) for name in ("a", "b")]
    changed = json.loads(config_text("b"))
    changed["data"]["sources"][1]["kind"] = "<i>"
    changed["model"] = {"width": 512, "extra": True}
    (runs[1] / "config.yaml").write_text(json.dumps(changed))
    keys, values, more = page._differences(read_runs(runs))
    assert keys == [
        "model.width",
        "model.depth",
        "model.context",
        "model.vocabulary",
        "data.sources.1.kind",
        "model.extra",
    ]
    assert values == [["384", "16", "512", "256", "utm", "–"], ["512", "–", "–", "–", "<i>", "True"]] and more == 0
