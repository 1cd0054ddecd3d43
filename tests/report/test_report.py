"""The report against run directories of known numbers; tests/report/test_browser.py opens it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from pathlib import Path

import pytest

from tests.report.made import make_run, parse, score_line, shown, step_line
from upscale import report
from upscale.config import ModelConfig
from upscale.evaluation.record import EvaluationRecord
from upscale.model.transformer import Transformer
from upscale.report import page
from upscale.report.figures import draw
from upscale.report.runs import read_runs


def test_the_tables_hold_the_numbers_of_the_run(tmp_path):
    # 100 steps of 2 s at first 2, then 3 ranks; one task beaten, one level, one behind, one earlier score superseded
    metrics = [step_line(step, world_size=2 if step < 60 else 3) for step in range(10, 101, 10)]
    scores = [
        *(score_line("dyck", 8.01, 0), score_line("dyck", 0.888), score_line("ndfa", 0.961)),
        score_line("wp", 1.234, split="excerpt", optimal_bits_per_character=None),
    ]
    index = shown([make_run(tmp_path / "w384", metrics=metrics, scores=scores)], tmp_path / "out")
    text, rows = index.read_text(encoding="utf-8"), parse(index).rows

    assert rows[1] == [
        *(
            f"w384|{tmp_path / 'w384'}",
            "384 × 16|28.8 M parameters",
            "lstm (3.0), utm (1.0)",
            "3,200|50 % of plan",
            "100",
        ),
        *("2 → 3", "7.000", "1 of 3", "200|0:03:20", "12.5", "config"),
    ]
    evaluations = {row[0].split("|")[0]: row[2:] for row in rows[3:]}
    reference = ["0.958 (3)", "1.008 (2)"]
    assert evaluations["dyck"] == ["3,200", "0.888 ± 0.010", *reference, "0.791", "✓ beats it by 0.070", "10,000"]
    assert evaluations["ndfa"] == ["3,200", "0.961 ± 0.010", *reference, "0.791", "≈ level (+0.003)", "10,000"]
    assert evaluations["wp (excerpt)"] == ["3,200", "1.234 ± 0.010", *reference, "–", "✗ behind by 0.276", "10,000"]
    assert "has seen 3,200 synthetic rows and needs 7.000 bits per byte on them." in text
    assert "It beats the Markov baseline on 1 of 3 tasks: dyck. It is level with it on ndfa." in text
    assert "torch 2.9.1, commit 0123abc" in text


def test_each_picture_tells_its_final_values_and_lies_beside_the_page(tmp_path):
    run = make_run(tmp_path / "w384", scores=[score_line("dyck", 0.888), score_line("a/b <c>", 0.9)])
    index = report.write([run], tmp_path / "out")
    alts = re.findall(r'<figure id="[^"]*" role=img aria-label="([^"]*)"', index.read_text(encoding="utf-8"))
    assert "Training loss over instances seen (rows). Last values: w384 7 bits per byte." in alts
    assert "Time generating data over instances seen (rows). Last values: w384 25 %." in alts
    assert "Model FLOPs utilization over instances seen (rows). Last values: w384 37.5 %." in alts
    assert any(alt.endswith("Last values: w384 0.888; Markov baseline 0.958; optimum 0.791.") for alt in alts)

    names = {path.name for path in index.parent.iterdir()}
    assert {"index.html", "loss.png", "learning-rate.svg", "task-dyck-generated.png"} <= names
    assert all(re.fullmatch(r"[a-z0-9-]+\.(png|svg|html)", name) for name in names), "and no temporary file is left"
    assert len(names) - 1 == 2 * (len(alts) + 1), "and all tasks in one"
    for name in names - {"index.html"}:
        begin = (index.parent / name).read_bytes()[:60]
        assert begin.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml"), name


def test_sources_are_drawn_above_their_optimum(tmp_path):
    """Against records of two sources, one of them with a known optimum, and of none: a picture each with its last
    value; a single source without an optimum has none of its own, since the run's loss is its."""
    lines = [
        step_line(
            step,
            loss_bits_per_source={"shuffle_dyck": 6.0, "lstm": 5.5},
            excess_bits_per_source={"shuffle_dyck": 6.0 - 0.01 * step} if step > 10 else {},
        )
        for step in range(10, 101, 10)
    ]
    alone = [step_line(step, loss_bits_per_source={"lstm": 5.0}, excess_bits_per_source={}) for step in (10, 20)]
    both = [make_run(tmp_path / "both", metrics=lines), make_run(tmp_path / "older")]
    pictures = {picture.name: picture for picture in draw(read_runs(both), files=False)}
    assert "Last values: both 5; older unknown." in pictures["source-shuffle-dyck"].alt
    assert "Last values: both 5.5; older unknown." in pictures["source-lstm"].alt
    single = draw(read_runs([make_run(tmp_path / "alone", metrics=alone)]), files=False)
    assert not [picture for picture in single if picture.name.startswith("source-")]


def test_everything_from_a_file_is_escaped(tmp_path):
    evil = '<script>alert("$x_1$")</script>&'
    scores = [score_line(evil, 0.9, split=evil), score_line("german", None, skipped=evil)]
    path = make_run(tmp_path / "run", name=evil, scores=scores)
    index = report.write([path, make_run(tmp_path / "other", name="_hidden")], tmp_path / "out")
    text = index.read_text(encoding="utf-8")
    assert text.lower().count("<script") == 1, "the page's own"
    assert "&lt;script&gt;alert(&#34;$x_1$&#34;)&lt;/script&gt;&amp;" in text


def test_the_page_fetches_nothing(tmp_path):
    """No address but places in the page; the policy allows one script, by its hash, and it is the page's own."""
    index = report.write([make_run(tmp_path / "w384", scores=[score_line("dyck", 0.888)])], tmp_path / "out")
    text, addresses = index.read_text(encoding="utf-8"), parse(index).addresses
    assert addresses and all(re.fullmatch(r"#config-\d+", address) for address in addresses)
    assert not re.search(r"(https?|file|ftp):|@import|url\((?!#)|<link|<iframe|<image|<foreignObject", text)
    assert not re.search(r'href="(?!#)| on\w+=', text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert script == (Path(page.__file__).parent / "templates/page.js").read_text(encoding="utf-8")
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', text)
    parts = html.unescape(policy).split("; ")
    hashed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{hashed}'" in parts and "default-src 'none'" in parts
    assert not any(part.startswith(("connect-src", "img-src")) for part in parts)


def test_the_same_input_gives_the_same_bytes(tmp_path):
    import matplotlib

    steps = [{key: step_line(step)[key] for key in ("step", "instances", "loss_bits_per_byte")} for step in (1, 20)]
    run = make_run(tmp_path / "w384", metrics=steps, scores=[score_line("dyck", 0.888)])
    first = report.write([run], tmp_path / "first")
    with matplotlib.rc_context({"font.size": 30, "savefig.dpi": 20, "axes.facecolor": "red"}):
        second = report.write([run], tmp_path / "second")
    for path in first.parent.iterdir():
        assert path.read_bytes() == (second.parent / path.name).read_bytes(), path.name
    assert report.write([run], tmp_path / "first").read_bytes() == second.read_bytes()


def test_a_run_without_evaluations_or_config_or_utilization(tmp_path):
    path = make_run(tmp_path / "bare", metrics=[step_line(1, model_flops_utilization=None, peak_memory_gib=None)])
    (path / "config.yaml").unlink()
    index = report.write([path], tmp_path / "out")
    text = index.read_text(encoding="utf-8")
    assert parse(index).rows[1][1:] == ["– × –", "–", "32", "1", "2", "7.990", "–", "2", "–", "config"]
    assert "It has not been evaluated yet." in text and "No run has a score yet" in text
    assert 'id="tokens-per-second"' in text and 'id="utilization"' not in text


def test_tasks_without_a_number_are_listed_with_their_reason(tmp_path):
    scores = [
        *(score_line("german", None, 0, split=None, skipped="no file <german>"), score_line("dyck", 0.9, 0)),
        *(score_line("german", None, split=None, skipped="still no file"), score_line("dyck", None)),
        *(score_line("wp", None, 0, split=None, skipped="not there yet"), score_line("wp", 4.5, split="excerpt")),
    ]
    index = shown([make_run(tmp_path / "run", scores=scores)], tmp_path / "out")
    text = index.read_text(encoding="utf-8")
    assert "<strong>german</strong>: still no file" in text and "no file <german>" not in text
    assert "<strong>dyck</strong>: the model's output was not finite" in html.unescape(text)
    assert "not there yet" not in text
    assert [row[2] for row in parse(index).rows[3:]] == ["0", "3,200"], "dyck keeps its last number and when it was"


def test_losses_that_are_not_finite_leave_the_rest_readable(tmp_path):
    metrics = [step_line(step) for step in range(1, 200)]
    metrics[50]["loss_bits_per_byte"], metrics[60]["loss_bits_per_byte"] = float("nan"), float("inf")
    metrics[70]["loss_bits_per_byte"], metrics[-1]["loss_bits_per_byte"] = 61.5, None
    index = report.write([make_run(tmp_path / "run", metrics=metrics)], tmp_path / "out")
    assert parse(index).rows[1][6] == "not a number|mean of 4: 6.030"
    assert "Axis cut at 12.0 bits; the highest value is 61.50." in index.read_text(encoding="utf-8")


def test_several_runs_and_equal_names(tmp_path):
    first = make_run(tmp_path / "a" / "w384", scores=[score_line("dyck", 0.888)])
    second = make_run(tmp_path / "b" / "w384", scores=[score_line("dyck", 0.999), score_line("toy", 1.5)])
    third = make_run(tmp_path / "c")
    index = shown([first, second, third, first], tmp_path / "out")
    rows = parse(index).rows
    assert [row[0] for row in rows[1:4]] == [f"w384 ({first})", f"w384 ({second})", f"c|{third}"]
    assert rows[4] == ["Run", "dyck|Markov 0.958|optimum 0.791", "toy|Markov 0.958|optimum 0.791"]
    assert rows[5] == [f"w384 ({first})", "0.888 |✓", "–"]
    assert rows[6:8] == [[f"w384 ({second})", "0.999 |✗", "1.500 |✗"], ["c", "–", "–"]]
    assert [row[1:4] for row in rows[9:11]] == [
        [f"w384 ({first})", "3,200", "0.888 ± 0.010"],
        [f"w384 ({second})", "3,200", "0.999 ± 0.010"],
    ]
    assert rows[11][0].startswith("toy") and rows[11][1] == f"w384 ({second})"
    text = index.read_text(encoding="utf-8")
    assert "3 runs compared" in text and text.count("<li ") == 3
    assert text.count('class="number best"') == 1, "of the one task that two runs have a score of"


def test_a_fine_tuned_run_is_not_called_zero_shot(tmp_path):
    run = make_run(tmp_path / "run", scores=[score_line("wp", 2.5, split="excerpt")])
    (run / "config.yaml").write_text("data: {kind: corpus, corpora: [{path: data/wp}]}\n")
    text = shown([run], tmp_path / "out").read_text(encoding="utf-8")
    assert "rows of its corpus (data/wp)" in text and "its score on that text is not zero-shot" in text


@pytest.mark.parametrize("block", ["paper", "llama", "prenorm"])
def test_the_parameters_are_those_of_the_model(tmp_path, block):
    settings = {"block": block, "width": 128, "depth": 4, "heads": 2, "context": 64, "plain_blocks": 2}
    run = make_run(tmp_path / "run")
    (run / "config.yaml").write_text(json.dumps({"model": settings}))
    counted = sum(each.numel() for each in Transformer(ModelConfig(**settings), 1.0).parameters())
    assert page._parameters(*read_runs([run])) == f"{counted / 1e6:.3g} M parameters"


@pytest.mark.parametrize("config", ["{}", "model: [1]", "model: {width: 384, key_of_another_version: 1}"])
def test_parameters_of_another_version_are_left_out(tmp_path, config):
    run = make_run(tmp_path / "run")
    (run / "config.yaml").write_text(config)
    assert page._parameters(*read_runs([run])) == ""


def test_verdict_needs_two_standard_errors():
    def verdict(bits: float, **changes) -> str:
        return page.compare(EvaluationRecord(**score_line("t", bits, **changes)))

    assert [verdict(bits) for bits in (0.93, 0.94, 0.99)] == ["beats", "level", "behind"]
    assert verdict(0.94, standard_error=None) == "beats"
    assert verdict(0.94, markov_bits_per_character=None) == ""


def test_an_interrupted_write_leaves_the_old_page(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    old = report.write([run], tmp_path / "out").read_bytes()
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps(step_line(110)) + "\n")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(ValueError, match="No space left on device"):
        report.write([run], tmp_path / "out")
    assert (tmp_path / "out" / "index.html").read_bytes() == old
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix not in (".png", ".svg", ".html")]
