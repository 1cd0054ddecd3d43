"""Synthetic rows as text, for a look at what the lanes write."""

from collections.abc import Iterator

import torch

from upscale.data.lanes import Lanes
from upscale.sources.tokens import ids


def printable(rows: torch.Tensor) -> list[str]:
    """One string a row of (rows, length) tokens: printable ASCII as it is, any other token as a middle dot."""
    return ["".join(chr(token) if 32 <= token < 127 else "·" for token in row) for row in ids(rows).tolist()]


def sample_lines(lanes: Lanes, rounds: int, rows: int) -> Iterator[str]:
    """Runs `rounds` rounds and gives, for each, a heading and `rows` training rows of the first lane.

    Each row is led by its number of distinct tokens; below one that has tokens which are no targets, `^` marks those
    that are.
    """
    rows = min(rows, lanes.rows_per_round)
    for _ in range(rounds):
        drawn = lanes.draw(rows)[:rows].cpu()
        yield f"lane {lanes.lanes[0]}, round {int(lanes.rounds[0])}"
        for row, text in zip(drawn, printable(drawn), strict=True):
            yield f"{len(ids(row).unique()):4d} distinct  {text}"
            if (row < 0).any():
                yield f"{'targets':>13}  {''.join('^' if token >= 0 else ' ' for token in row.tolist())}"
