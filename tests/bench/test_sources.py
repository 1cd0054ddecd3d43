"""What `upscale bench --sources` measures: every kind of source that there is, and so do its committed figures."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
import torch

from upscale.bench import sources
from upscale.sources import KINDS

DOCS = Path(__file__).parents[2] / "docs"


def names() -> list[str]:
    return [f"{kind} {label}".strip() for kind, (label, _) in sources.entries()]


def test_every_kind_is_measured(monkeypatch, tmp_path):
    """Against the kinds that a config may name; each entry is one that a config at width 1024 accepts."""
    asked = []
    rate = {"median": 2.0, "lowest": 1.0, "highest": 3.0}

    def rates(settings: dict, width: int, *_: object) -> dict:
        asked.append(settings["kind"])
        entry, model = sources.resolved(settings, width)
        assert entry.build(model.vocabulary)
        return {"rows_per_second": rate, "rows_per_cpu_second": rate}

    monkeypatch.setattr(sources, "rows_per_second", rates)
    found = sources.run(1024, 1, torch.device("cpu"))
    assert set(asked) == set(KINDS)
    assert [one["name"] for one in found["sources"]] == names() and len(set(names())) == len(names())


def test_the_committed_figures_are_of_every_source_that_there_is():
    """In the file, and in the table of docs/results.md, which says what the file says to two digits."""
    found = json.loads((DOCS / "benchmarks/sources_cpu_seconds.json").read_text())
    measured = {one["name"]: one["rows_per_cpu_second"]["median"] for one in found["sources"]}
    assert sorted(measured) == sorted(names())
    section = (DOCS / "results.md").read_text().split("\n## Rates of the sources\n")[1].split("\n## ")[0]
    table = {name: rate for row in section.splitlines() for name, rate in re.findall(r"`([^`]+)` \| ([\d ]+) ", row)}
    assert set(table) == set(measured)
    for name, rate in table.items():
        assert float(rate.replace(" ", "")) == pytest.approx(measured[name], rel=0.02), name


def test_rows_by_the_clock_and_by_the_cpu(monkeypatch):
    """128 rows a call, of which half a second is counted by each clock: 256 rows a second."""
    ticks = itertools.count()
    monkeypatch.setattr("time.process_time", lambda: next(ticks) / 2)
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks) / 6)
    found = sources.rows_per_second({"kind": "uniform"}, 64, 3, torch.device("cpu"))
    expected = dict.fromkeys(("median", "lowest", "highest"), 256)
    assert found == {
        "rows_per_second": pytest.approx(expected),
        "rows_per_cpu_second": pytest.approx(expected),
    }
