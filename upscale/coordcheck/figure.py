"""The coordinate check as a picture, and what was found as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

from upscale.console.text import aligned_table
from upscale.coordcheck.coordinates import STEPS, Coordinate, steep
from upscale.coordcheck.roles import LEARNING_RATE, STANDARD_DEVIATION, WEIGHT_DECAY, Comparison

QUANTITIES = (STANDARD_DEVIATION, LEARNING_RATE, WEIGHT_DECAY)


def roles_table(found: Sequence[Comparison], width: int) -> str:
    """One line a parameter at one width: ours and mup's standard deviation, learning rate and weight decay."""
    lines: dict[tuple[str, str], dict[str, Comparison]] = {}
    for one in found:
        if one.width == width:
            lines.setdefault((one.name, one.role), {})[one.quantity] = one
    head = ["parameter", "role", *(text for quantity in QUANTITIES for text in (quantity, "mup"))]
    rows = []
    for (name, role), quantities in lines.items():
        pairs = [quantities.get(quantity) for quantity in QUANTITIES]
        if any(pairs):
            numbers = [text for one in pairs for text in ((f"{one.ours:.4g}", f"{one.expected:.4g}") if one else "--")]
            rows.append([name, role, *numbers])
    return aligned_table(head, rows, words=2)


def slopes_table(found: dict[str, Coordinate]) -> str:
    """One line a layer: the slopes of its size and its change over the width, and which of them is steep."""
    rows = [
        [name, " and ".join(steep(name, one)) or "flat", f"{one.size:+.3f}", f"{one.change:+.3f}"]
        for name, one in found.items()
    ]
    return aligned_table(["layer", "not flat", "slope of its size", "of its change"], rows, words=2)


def draw(
    file: BinaryIO, kind: str, title: str, widths: Sequence[int], measured: Sequence[dict[str, Coordinate]]
) -> None:
    """Draw size and change of every layer over the width, both axes logarithmic, as a picture of a kind such as png."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, what in ((left, "size"), (right, "change")):
        for name in measured[0]:
            axes.loglog(widths, [getattr(one[name], what) for one in measured], "o-", label=name, base=2, markersize=3)
        axes.set(title=f"{what} after {STEPS} steps", xlabel="width", xticks=widths, xticklabels=widths)
        axes.grid(alpha=0.3)
    left.set_ylabel("mean absolute value")
    right.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(title, fontsize=10)
    figure.savefig(file, format=kind, dpi=120)
