"""Checkpoints across engines, stages and worlds, against the same run without an interruption."""

from __future__ import annotations

import pytest

from tests.benchmarks.resume_matrix import CELLS, ENGINES, Cell, control, measure
from tests.ranks import run_ranks

LARGEST = 1e-5
NAMES = list(ENGINES)
SHORT = [
    *(Cell(name, name, 4) for name in NAMES),
    *(Cell(writer, reader, 3) for writer, reader in zip(NAMES, NAMES[2:] + NAMES[:2], strict=True)),
    Cell("deepspeed-3", "fsdp", 1),
    Cell("fsdp", "deepspeed-2", 1),
]
"""Every engine and stage in its own world of four, as a reader and as a writer for three ranks, and one rank alone."""


def check(found: dict[Cell, float]) -> None:
    for cell, value in found.items():
        assert value <= (0 if cell.unchanged else LARGEST), (cell, value)


def test_a_part_of_the_matrix(tmp_path):
    """Four ranks save in step 10; four, three and one resume. One group of blocks woke before, one wakes in step 12."""
    check(measure(tmp_path, SHORT, steps=5, fresh=False))


@pytest.mark.slow
def test_the_whole_matrix_over_twenty_steps(tmp_path):
    """Five writers, five readers, one to four ranks."""
    found = measure(tmp_path, CELLS)
    assert len(found) == 100
    check(found)


def test_a_resume_that_forgets_the_moments_would_be_noticed(tmp_path):
    """The control: the bound is far below what an error in restoring the optimizer's state does."""
    assert run_ranks(control, 1, tmp_path, 5)[0] > 10 * LARGEST
