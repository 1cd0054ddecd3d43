"""Control data: what it keeps of the rows that were written, and what it does not."""

from __future__ import annotations

from collections import Counter

import numpy
import pytest
import torch

from tests import tiny
from upscale.data import lanes
from upscale.data.controls import controlled
from upscale.randomness.streams import Stream
from upscale.sources.tokens import ids, read_only

SOURCES = "[{kind: minimalist}]"


def drawn(control: str, **changes: object) -> tuple[torch.Tensor, lanes.Lanes]:
    config = tiny.config(model__context=63, data__sources=SOURCES, data__control=control, data__lanes=3, **changes)
    made = lanes.from_config(config, range(3), "cpu")
    for _ in range(8):
        rows = made.draw(4)
    return rows, made


def test_the_buffer_and_the_choice_of_rows_stay_as_they_were():
    plain, kept = drawn("none")
    for control in ("shuffled", "pairs"):
        rows, changed = drawn(control)
        assert torch.equal(changed.buffers, kept.buffers) and torch.equal(changed.origins(), kept.origins())
        assert rows.shape == plain.shape and rows.dtype == plain.dtype and not torch.equal(rows, plain)
    shuffled, _ = drawn("shuffled")
    assert torch.equal(shuffled.sort(dim=-1).values, plain.sort(dim=-1).values)


def test_targets_stay_in_their_places():
    stream = Stream(0, [0, 1], [0, 0])
    tokens = torch.arange(40).view(2, 2, 10) % 7
    where = tokens % 3 == 0
    for control in ("shuffled", "pairs"):
        found = controlled(control, read_only(tokens, where), stream)
        assert torch.equal(found < 0, where) and found.dtype == torch.int16
        assert torch.equal(controlled(control, tokens.to(torch.uint8), stream).short(), ids(found))


def test_pairs_of_neighbours_are_as_frequent_as_in_the_ring():
    """Of one row, walked many times: frequencies of tokens and of pairs against its own, counted by hand."""
    row = torch.tensor([0, 1, 0, 2, 2, 1, 0, 1])
    rows = row.expand(1, 4000, 8).contiguous().to(torch.uint8)
    walks = controlled("pairs", rows, Stream(3, [0], [0]))[0].tolist()
    ring = Counter(zip(row.tolist(), row.roll(-1).tolist(), strict=True))
    seen = Counter(pair for walk in walks for pair in zip(walk, walk[1:], strict=False))
    assert seen.keys() == ring.keys()
    total = sum(seen.values())
    for pair, count in ring.items():  # 28,000 pairs: a deviation of 0.003, more for those of one walk
        assert seen[pair] / total == pytest.approx(count / 8, abs=0.012), pair
    starts = numpy.bincount([walk[0] for walk in walks], minlength=3) / 4000
    assert starts == pytest.approx([3 / 8, 3 / 8, 2 / 8], abs=0.03)


def test_shuffles_are_uniform():
    """Each token of one row is equally often at each place."""
    rows = torch.arange(5).expand(1, 5000, 5).contiguous().to(torch.uint8)
    found = controlled("shuffled", rows, Stream(1, [0], [0]))[0]
    counts = torch.stack([(found == token).sum(0) for token in range(5)])
    assert (counts - 1000).abs().max() < 5 * (5000 * 0.2 * 0.8) ** 0.5


def test_seeds_of_rows_and_of_their_order_are_apart():
    """Another seed of the order: the same buffers, other rows of them; another seed of rows: other buffers."""
    plain, made = drawn("none")
    other, again = drawn("none", run__seeds__order=1)
    assert torch.equal(made.buffers, again.buffers) and not torch.equal(plain, other)
    _, different = drawn("none", run__seeds__rows=1)
    assert not torch.equal(made.buffers, different.buffers)
    assert torch.equal(drawn("none", run__seed=3, run__seeds__rows=0, run__seeds__order=0)[0], plain)
