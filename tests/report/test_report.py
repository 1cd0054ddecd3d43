"""The report against run directories of known numbers; tests/report/test_browser.py opens it."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import re
from pathlib import Path

import pytest

from upscale import report
from upscale.config import ModelConfig
from upscale.evaluation.record import EvaluationRecord
from upscale.model.transformer import Transformer
from upscale.report import page
from upscale.report.figures import draw
from upscale.report.runs import read_runs


def step_line(step: int, **changes) -> dict:
    line = {
        **{"step": step, "instances": 32 * step, "tokens": 32 * 512 * step, "loss_bits_per_byte": 8.0 - 0.01 * step},
        **{"learning_rate": 1e-4, "global_batch": 32, "active_blocks": 8, "grad_norm": 0.5, "step_seconds": 2.0},
        **{"generate_seconds": 0.5, "tokens_per_second": 8192.0, "tokens_per_second_per_device": 4096.0},
        **{"model_flops_utilization": 0.375, "peak_memory_gib": 12.5, "world_size": 2, "skipped_steps": 0},
    }
    return line | changes


def score_line(task: str, bits: float | None, instances: int = 3200, **changes) -> dict:
    line = {
        **{"step": instances // 32, "instances": instances, "task": task, "split": "generated"},
        **{"bits_per_character": bits, "standard_error": 0.01, "samples": 10000, "skipped": None},
        **{"markov_bits_per_character": 0.958, "markov_order": 3, "optimal_bits_per_character": 0.791},
        **{"markov_published_bits_per_character": 1.008, "markov_published_order": 2},
    }
    return line | changes


def config_text(name: str) -> str:
    return json.dumps(
        {
            "run": {"name": name, "seed": 0},
            "model": {"width": 384, "depth": 16, "context": 512, "vocabulary": 256},
            "schedule": {"instances": 6400},
            "data": {"kind": "synthetic", "sources": [{"kind": "lstm", "weight": 3.0}, {"kind": "utm", "weight": 1.0}]},
            "versions": {"torch": "2.9.1", "commit": "0123abc"},
        }
    )


def lines_of(objects: list[dict]) -> str:
    return "".join(json.dumps(line) + "\n" for line in objects)


def make_run(
    path: Path, *, name: str | None = None, metrics: list[dict] | None = None, scores: list[dict] | None = None
):
    """A run directory of 100 steps, 10 of them logged; scores None means that it has no evaluations.jsonl."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(config_text(name or path.name))
    (path / "metrics.jsonl").write_text(lines_of(metrics or [step_line(step) for step in range(10, 101, 10)]))
    if scores is not None:
        (path / "evaluations.jsonl").write_text(lines_of(scores))
    return path


class Cells(html.parser.HTMLParser):
    """The text of every table cell, row by row, and every address that a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.rows: list[list[str]] = []
        self.addresses: list[str] = []
        self.inside = False

    def handle_starttag(self, tag, attributes):
        self.addresses += [text or "" for key, text in attributes if key in ("src", "srcset", "href", "data", "action")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += ("|" if self.rows[-1][-1] else "") + data


def parse(index: Path) -> Cells:
    cells = Cells()
    cells.feed(index.read_text(encoding="utf-8"))
    return cells


def shown(runs: list[Path], to: Path) -> Path:
    """The page without its pictures, which take seconds."""
    to.mkdir(exist_ok=True)
    (to / "index.html").write_text(page.build(read_runs(runs), []), encoding="utf-8")
    return to / "index.html"


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
