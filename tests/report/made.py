"""Run directories of known numbers, and what a page made of them holds."""

from __future__ import annotations

import html.parser
import json
from pathlib import Path

from upscale.report import page
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
