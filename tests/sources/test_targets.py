"""Rows that choose their targets: whatever the settings allow, each has one, so that no batch can lack them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import tiny
from tests.sources.common import given
from upscale.config import files as config_files
from upscale.data.lanes import NO_SOURCE, from_config
from upscale.errors import UserError
from upscale.sources import KINDS, SourceSettings
from upscale.sources.lists import TASKS

ABLATIONS = Path(__file__).parents[2] / "configs/ablations"
SMALLEST = {
    "lists": [{"task": task, "items": {"union": 2, "delete": 2}.get(task, 1), "values": 2} for task in TASKS],
    "stack": [{"operations": 2, "values": 3}, {"operations": 3, "values": 4}],
    "rewriting": [{"task": task, "symbols": 68} for task in ("deduct", "abduct", "induct", "mixed")],
}
"""Of every kind whose rows choose targets, entries with the least that each of its keys may be."""


def smallest_context(entry: SourceSettings) -> int:
    """The least context that the entry allows."""
    return next(c for c in range(2, 1000) if not list(entry.problems(SimpleNamespace(vocabulary=256, context=c))))


def test_every_kind_that_chooses_targets_is_looked_at():
    assert set(SMALLEST) == {kind for kind, of in KINDS.items() if of.masked is not SourceSettings.masked}


@pytest.mark.parametrize(
    ("kind", "keys"), [(kind, keys) for kind, entries in SMALLEST.items() for keys in entries], ids=str
)
def test_every_row_has_a_target_at_the_smallest_sizes(kind, keys):
    """Counted over 512 rows of the least context that is allowed; one token less is refused."""
    entry = KINDS[kind].model_validate({"kind": kind, **keys})
    assert entry.masked
    context = smallest_context(entry)
    rows = entry.build(256).write(*given(8, 64, context + 1))
    targets = (rows[..., 1:] >= 0).sum(-1)
    assert targets.min() >= 1
    assert (targets < context).all()


def test_settings_that_leave_rows_without_a_target_are_refused():
    """A list of one value without that value is empty: with two values to draw from, half of the rows would be."""
    entry = "[{kind: dyck}, {kind: lists, task: delete, items: 1, values: 3}]"
    with pytest.raises(UserError, match=r"\[1\].items: 1 with task: delete leaves lists without an answer.*2 or"):
        tiny.config(data__sources=entry)
    assert tiny.config(data__sources=entry.replace("values: 3", "values: 3, loss: all"))


def test_shipped_configs_of_rows_that_choose_targets_train_on_no_others():
    """A row that a buffer begins with is targets from end to end, and would outweigh many of the sources'."""
    configs = [config_files.load(path).resolved() for path in ABLATIONS.glob("*.yaml")]
    masked = [config for config in configs if config.data.masked]
    assert {source.kind for config in masked for source in config.data.sources} >= set(SMALLEST)
    for config in masked:
        rows = from_config(config, range(2), "cpu")
        for _ in range(3):
            rows.draw(config.data.draw)
            assert (rows.origins() < NO_SOURCE).all(), config.run.name
