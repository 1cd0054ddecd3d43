"""The recipes of docs/extending.md are tried: its components are found by their names and work; its figure is drawn."""

from __future__ import annotations

import importlib
import itertools
import json

import pytest
import torch

from tests.docs import markdown
from tests.sources.common import assert_rows_do_not_depend_on_the_call, given
from upscale import report, settings
from upscale.config import ModelConfig
from upscale.report import figures
from upscale.sources import SourceSettings

NUMBERS = itertools.count()


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A function that makes a room of one file: the code block below a heading of docs/extending.md."""

    def make(heading: str):
        lines = (markdown.ROOT / "docs/extending.md").read_text().splitlines()
        start = lines.index(f"## {heading}") + 1
        code = next(
            block.text
            for block in markdown.blocks("docs/extending.md")
            if block.language == "python" and block.line > start
        )
        name = f"room_{next(NUMBERS)}"
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "component.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    return make


def test_the_source_is_found_and_counts(room):
    kind = settings.components(room("A source"), SourceSettings)["counter"]
    source = kind(kind="counter", largest_step=3).build(256)
    assert_rows_do_not_depend_on_the_call(source)
    stream, conditions, seeds = given(2, 50, 20)
    rows = source.write(stream, conditions, seeds)
    differences = rows.diff(dim=2)  # uint8: modulo 256 by itself
    assert rows.dtype == torch.uint8 and rows.shape == (2, 50, 20)
    assert (differences == differences[..., :1]).all() and set(differences.unique().tolist()) == {1, 2, 3}
    model = ModelConfig(vocabulary=10)
    assert [key for key, _ in kind(kind="counter", largest_step=11).problems(model)] == ["largest_step"]


def test_the_task_is_found_and_its_optimum_is_the_entropy_of_its_strings(room):
    from upscale.evaluation.tasks import Task

    task = settings.instances(room("A task"), Task)["vowels"]
    dataset = task.load(characters=600)
    text = dataset.data.tobytes()
    assert set(text) == set(b"aeiou|") and {len(word) for word in text.strip(b"|").split(b"|")} == {5}
    # 5 ** 5 words of equal chance, 6 characters each
    assert 2 ** (6 * dataset.optimal_bits_per_character) == pytest.approx(5**5)


def test_the_corpus_is_found_and_prepared(room, tmp_path, monkeypatch):
    from upscale.cli.prepare import main
    from upscale.corpora.recipes import RECIPES, Recipe
    from upscale.corpora.shards.reading import Corpus

    monkeypatch.setitem(RECIPES, "poems", settings.components(room("A corpus"), Recipe)["poems"])
    (tmp_path / "poems.txt").write_bytes(b"Shall I compare thee to a summer's day? " * 50)
    assert main(["poems", "--from", str(tmp_path / "poems.txt"), "--to", str(tmp_path / "to")]) == 0
    corpus = Corpus.open(tmp_path / "to")
    assert b"".join(split.text().tobytes() for split in corpus.splits.values()) == (tmp_path / "poems.txt").read_bytes()
    assert {name: len(split) for name, split in corpus.splits.items()} == {
        "train": 1600,
        "validation": 200,
        "test": 200,
    }


def test_the_figure_is_drawn_where_runs_have_its_field(tmp_path, monkeypatch):
    """One panel more, and nothing else: it is in the report of a run with the field, and left out without it."""
    panel = figures._Panel("speed", "drawing", "Drawing rows", "draw_seconds", "seconds per step", "s")
    monkeypatch.setattr(figures, "_PANELS", (*figures._PANELS, panel))
    for name, extra in (("new", {"draw_seconds": 0.25}), ("old", {})):
        (tmp_path / name).mkdir()
        steps = ({"step": step, "instances": 8 * step, "loss_bits_per_byte": 8.0, **extra} for step in (1, 2))
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
        pictures = {picture.name: picture for picture in figures.draw(report.read_runs([tmp_path / name]), files=False)}
        assert ("drawing" in pictures) == (name == "new")
    (tmp_path / "new" / "config.yaml").touch()
    page = report.write_page(report.read_runs([tmp_path / "new"]), tmp_path / "report")
    assert (page.parent / "drawing.png").is_file() and "Drawing rows" in page.read_text()
