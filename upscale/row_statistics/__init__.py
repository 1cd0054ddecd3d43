"""Statistics of what sources write, beside those of texts: one table, and one picture."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from upscale.console.text import aligned_table
from upscale.errors import UserError
from upscale.files import write_atomically
from upscale.row_statistics.measures import Measures, measure

COLUMNS = (
    ("gzip", lambda found: f"{found.gzip_ratio:.3f}"),
    ("distinct", lambda found: f"{found.distinct_tokens:.1f}"),
    ("row entropy", lambda found: f"{found.row_entropy:.2f}"),
    ("H0 H1 H2 H3", lambda found: " ".join(f"{bits:.2f}" for bits in found.entropy_by_order)),
    ("Zipf", lambda found: f"{found.zipf_slope:.2f}"),
    ("repeat", lambda found: f"{found.mean_repeat:.1f}"),
    ("longest", lambda found: f"{found.longest_repeat:.0f}"),
    (
        "Markov",
        lambda found: f"{found.markov_bits:.2f} ({found.markov_bits_by_order.index(found.markov_bits)})",
    ),
)


def write(things: Mapping[str, np.ndarray], to: Path | None) -> str:
    """Measures each thing's rows; returns the table, and writes `statistics.json` and `.png` into the folder `to`."""
    found = {name: measure(rows) for name, rows in things.items()}
    if to is not None:
        try:
            to.mkdir(parents=True, exist_ok=True)
            write_atomically(to / "statistics.png", picture(found))
            content = {name: dataclasses.asdict(each) for name, each in found.items()}
            write_atomically(to / "statistics.json", (json.dumps(content, indent=2) + "\n").encode())
        except OSError as error:
            raise UserError(f"--to {to} cannot be written: {error.strerror or error}") from None
    return table(found)


def table(found: Mapping[str, Measures]) -> str:
    """A line a thing; what the columns mean is said below them."""
    head = ["", *(title for title, _ in COLUMNS)]
    lines = aligned_table(head, [[name, *(cell(each) for _, cell in COLUMNS)] for name, each in found.items()])
    some = next(iter(found.values()))
    notes = (
        f"\n{some.rows} rows of {some.length} tokens. gzip: compressed share of a row's bytes. distinct: tokens in a"
        "\nrow. row entropy: bits of a token by its row's frequencies. H0 to H3: given 0 to 3 before it, over all rows"
        "\n(too low where contexts are rare). Zipf: slope of frequency over rank in a row. repeat: length of the string"
        "\nup to a token that stood in the row before, mean and longest. Markov: bits per token of the best in-context"
        "\nMarkov model, and its order."
    )
    return f"{lines}\n{notes}"


def picture(found: Mapping[str, Measures]) -> bytes:
    """A PNG of four panels, a line a thing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from upscale.report.canvas import look_of

    figure = Figure(figsize=(11, 8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2).ravel()
    for index, (name, each) in enumerate(found.items()):
        look = look_of(index, marker_size=4)
        panels[0].plot(each.markov_bits_by_order, label=name, **look)
        panels[1].plot(each.entropy_by_order, **look)
        ranks = np.arange(1, len(each.rank_frequencies) + 1)
        panels[2].loglog(ranks, each.rank_frequencies, **{**look, "marker": None})
        panels[3].plot(each.gzip_ratio, each.mean_repeat, **{**look, "linestyle": "none", "marker": "o"})
    # Neighbours in height get their names above and below in turn, so that few names meet.
    for place, (name, each) in enumerate(sorted(found.items(), key=lambda item: item[1].mean_repeat)):
        offset = (4, -9 if place % 2 else 3)
        panels[3].annotate(name, (each.gzip_ratio, each.mean_repeat), xytext=offset, textcoords="offset points")
    labels = [
        ("order of the in-context Markov model", "bits per token"),
        ("tokens before", "conditional entropy, bits"),
        ("rank of a token in its row", "mean frequency"),
        ("gzip: compressed share of a row", "mean repeat, tokens"),
    ]
    for panel, (across, up) in zip(panels, labels, strict=True):
        panel.set_xlabel(across)
        panel.set_ylabel(up)
        panel.grid(color="#e4e4e4")
    for panel in panels[:2]:
        panel.xaxis.get_major_locator().set_params(integer=True)
    panels[3].set_yscale("symlog")
    panels[3].margins(x=0.1)
    figure.legend(loc="outside lower center", ncols=6, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
