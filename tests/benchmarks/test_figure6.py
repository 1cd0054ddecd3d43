"""Which sources figure 6 compares, and what its table and its picture say of made-up runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from tests import tiny
from tests.benchmarks import figure6
from upscale.config import files as config_files
from upscale.sources import KINDS

COMMAND = ["model.width=64", "model.depth=4", "model.heads=2", "mup.base_width=64", "schedule.halve_every=3000"]
"""What docs/studies/figure6.md was made with."""


def options(tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(runs=tmp_path, instances=8000, seeds=2, base="configs/w128.yaml", overrides=COMMAND)


def test_every_kind_of_source_is_a_curve(tmp_path):
    """Against the kinds that there are; every curve's config is one that would train, and no sample exceeds a row."""
    kinds = set()
    for curve in figure6.CURVES:
        given = figure6.overrides(curve, 0, options(tmp_path))
        config = config_files.load(Path("configs/w128.yaml"), given).resolved()
        kinds |= {source.kind for source in config.data.sources if source.weight}
        for source in config.data.sources:
            longest = {"noisy_set": lambda s: s.total + 1, "dyck": lambda s: 2 * s.pairs[1] + 2 if s.pairs else 0}
            assert longest.get(source.kind, lambda s: 0)(source) <= config.model.context + 1
    assert kinds == set(KINDS)
    assert set(figure6.LEFT_OUT) <= {path.stem for path in figure6.ABLATIONS.glob("*.yaml")}


def test_targets_of_a_row_are_those_of_the_runs_rows():
    """Against what is known of each: an answer of four tokens in rows of one sample; all but the first token."""
    one = dict(data__reset="{constant: 0, noise: 0}", data__buffer=1, data__enrich=1, model__context=8)
    answers = tiny.config(data__sources="[{kind: lists, task: identity, items: 4}]", **one)
    assert figure6.targets_per_row(answers) == 4
    assert figure6.targets_per_row(tiny.config(data__sources="[{kind: uniform}]", data__first_target=3, **one)) == 6


def records() -> list[dict]:
    """Two seeds of every curve; curve number n ends at 7 + n / 100 bits on each task."""
    return [
        dict(
            curve=curve,
            seed=seed,
            targets_per_row=63.6,
            instances=rows,
            task=task,
            bits_per_character=8 - (1 - number / 100 + (0.02 if seed else -0.02)) * rows / 8000,
            markov_bits_per_character=5.0,
        )
        for number, curve in enumerate(figure6.CURVES)
        for seed in range(2)
        for rows in (0, 8000)
        for task in figure6.TASKS
    ]


def test_the_table_and_the_picture(tmp_path):
    """The best first, with its targets; in the picture the best few and uniform have a name, and it has been drawn."""
    lines = figure6.table(records(), figure6.CURVES, options(tmp_path)).splitlines()
    rows = [line for line in lines if line.startswith("| ")][1:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == [*figure6.CURVES, "in-context Markov"]
    assert rows[0].startswith(f"| {figure6.CURVES[0]} | 64 | 7.00 +- 0.02 | ") and rows[0].endswith(" | 7.00 |")
    assert any('dyck_delimited with {"pairs": [16, 96]' in line for line in lines)
    figure6.draw(records(), figure6.CURVES, tmp_path / "figure6.png")
    assert (tmp_path / "figure6.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
