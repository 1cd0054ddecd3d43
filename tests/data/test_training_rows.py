"""Corpora as training rows: the same windows at any number of ranks, a state of counters, and bad corpora named."""

from __future__ import annotations

import pytest
import torch

from tests import tiny
from tests.corpora.small import corpus, text
from upscale.corpora.shards.reading import Windows
from upscale.data import training_rows
from upscale.data.lanes import owned_lanes
from upscale.errors import UserError
from upscale.evaluation import overlap
from upscale.evaluation.dataset import Dataset
from upscale.evaluation.tasks import TEXTS

SIZES = {"train": 900, "validation": 200, "test": 100}
CONTENT = text(1200)


@pytest.fixture
def folder(tmp_path):
    corpus(tmp_path / "wp", CONTENT, SIZES)
    return tmp_path / "wp"


def config(*folders, **changes):
    listed = ", ".join(f"{{path: {folder}}}" for folder in folders)
    return tiny.config(data__kind="corpus", data__corpora=f"[{listed}]", **changes)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 12])
def test_the_rows_of_a_step_are_the_same_windows_at_any_number_of_ranks(folder, size):
    """Against the windows 0 to 35, then 36 to 47, of the reader: three rows a lane, then one."""
    chosen = config(folder)
    windows = Windows.open([folder], context=16, seed=0)
    ranks = [training_rows.open_rows(chosen)(owned_lanes(12, rank, size), "cpu") for rank in range(size)]
    for rows_per_lane, instances in ((3, range(36)), (1, range(36, 48))):
        rows = torch.cat([rank.draw(rows_per_lane) for rank in ranks])
        expected = windows.rows(torch.tensor(instances))
        assert sorted(row.tobytes() for row in rows.numpy()) == sorted(row.tobytes() for row in expected.numpy())
        by_lane = expected.view(rows_per_lane, 12, 17).transpose(0, 1).reshape(-1, 17)
        assert torch.equal(rows, by_lane)


def test_a_state_continues_in_another_world_and_in_a_moved_folder(folder, tmp_path):
    whole = training_rows.open_rows(config(folder))(range(12), "cpu")
    part = training_rows.open_rows(config(folder))(range(5), "cpu")
    whole.draw(2)
    part.draw(2)
    moved = folder.rename(tmp_path / "elsewhere")
    state = {key: tensor[2:5] for key, tensor in part.state().items()}
    again = training_rows.open_rows(config(moved))(range(2, 5), "cpu")
    again.load_state(state)
    assert torch.equal(again.draw(4), whole.draw(4).view(12, 4, 17)[2:5].flatten(0, 1))


@pytest.mark.parametrize("change", ["text", "split", "weight"])
def test_a_state_of_other_texts_is_refused(folder, tmp_path, change):
    rows = training_rows.open_rows(config(folder))(range(12), "cpu")
    other = tmp_path / "other"
    corpus(other, text(1200, seed=1) if change == "text" else CONTENT, SIZES)
    chosen = config(other, data__split="validation" if change == "split" else "train")
    if change == "weight":
        chosen = tiny.config(data__kind="corpus", data__corpora=f"[{{path: {other}, weight: 2}}]")
    with pytest.raises(UserError, match="trained on other texts, another data.split or other weights"):
        training_rows.open_rows(chosen)(range(12), "cpu").load_state(rows.state())


def test_bad_corpora_are_all_named(folder, tmp_path):
    """A missing folder, a shard cut short, and a split smaller than one window, in one message."""
    corpus(tmp_path / "cut", CONTENT, SIZES)
    shard = next((tmp_path / "cut").glob("train-*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    corpus(tmp_path / "small", CONTENT[:30], {"train": 16, "validation": 7, "test": 7})
    with pytest.raises(UserError) as raised:
        training_rows.open_rows(config(folder, tmp_path / "none", tmp_path / "cut", tmp_path / "small"))
    message = str(raised.value)
    assert "none is not a prepared corpus: there is no such folder" in message
    assert shard.name in message and "bytes instead of" in message
    assert "has 16 bytes; one window needs 17" in message


def test_an_evaluated_text_that_is_trained_on_is_told(tmp_path, monkeypatch):
    """The shipped excerpt whole, against its first tenth, trained on 40 %: four of eight stretches, then all; never its
    held-out splits. Chunks are smaller than the text."""
    monkeypatch.setattr(overlap, "CHUNK_BYTES", 10_000)
    whole = TEXTS["wp"].load()
    content = whole.data.tobytes()
    sizes = {"train": 4 * len(content) // 10, "validation": len(content) // 2, "test": 10}
    corpus(tmp_path / "wp", content, sizes, piece_bytes=4096)
    held_out = TEXTS["wp"].load(data_dir=tmp_path)
    first = Dataset("linux", "text", whole.data[: len(content) // 10], split="data_dir")
    found = overlap.overlaps(config(tmp_path / "wp"), [whole, first])
    assert [line.split()[1] for line in found] == ["wp", "linux"] and "validation split is held out" in found[0]
    assert held_out.split == "validation" and overlap.overlaps(config(tmp_path / "wp"), [held_out]) == []
    assert overlap.overlaps(tiny.config(), [whole]) == []
