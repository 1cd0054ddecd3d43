"""`upscale generate` against the rows of training: read back by every reader, stopped anywhere, in processes."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

import upscale
from tests import tiny
from tests.corpora.small import corpus, text
from upscale.cli.generate import main
from upscale.corpora.shards import index
from upscale.data import generation, training_rows
from upscale.data.lanes import from_config, owned_lanes
from upscale.errors import UserError

LANES, DRAW, ROWS = 12, 2, 100
"""100 rows end inside a round of the lanes, which is 24."""

pytestmark = pytest.mark.usefixtures("one_thread")


def config(**changes):
    sources = "[{kind: automaton}, {kind: dyck, weight: 2}]"
    return tiny.config(**{"data__sources": sources, "data__draw": DRAW, **changes})


MASKED = dict(data__sources="[{kind: lists, task: sort, items: 4, loss: answer}, {kind: uniform}]", data__buffer=1)
WIDE = dict(model__vocabulary=300)


def made(to: Path, *, processes: int = 1, rows: int = ROWS, **changes) -> index.Index:
    """Shards of 21 rows, in samples of 7 (of 3 where a token has two bytes), neither a part of a round."""
    return generation.generate(
        config(**changes), rows=rows, to=to, processes=processes, piece_bytes=130, shard_pieces=3
    )


def expected(**changes) -> torch.Tensor:
    """(rows, context + 1): what training draws in rounds, row k of lane l at k L + l."""
    lanes = from_config(config(**changes), range(LANES), "cpu")
    rounds = [lanes.draw(DRAW).unflatten(0, (LANES, DRAW)) for _ in range(-(-ROWS // (LANES * DRAW)))]
    return torch.cat(rounds, 1).transpose(0, 1).flatten(0, 1)[:ROWS]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("changes", [{}, MASKED, WIDE], ids=["bytes", "masked", "wide"])
def test_every_reader_finds_the_rows(tmp_path, changes):
    """Against the lanes: tarfile, webdataset, and the rows of `data.kind: corpus`, which go round at the end."""
    written = made(tmp_path / "rows", **changes)
    rows, two_bytes = expected(**changes), bool(changes)
    paths = [str(tmp_path / "rows" / shard.file) for shard in written.splits["train"]]
    assert len(paths) == -(-ROWS // (9 if two_bytes else 21))
    assert (written.row_tokens, written.token_bytes, written.split_bytes("train")) == (
        17,
        1 + two_bytes,
        ROWS * 17 * (1 + two_bytes),
    )
    dtype = "<i2" if two_bytes else np.uint8
    samples = list(webdataset.WebDataset(paths, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"train-{number:08d}" for number in range(len(samples))]
    found = np.concatenate([np.frombuffer(sample["bin"], dtype).reshape(-1, 17) for sample in samples])
    assert np.array_equal(found, rows.numpy())
    content = b""
    for path in paths:
        with tarfile.open(path) as tar:
            content += b"".join(tar.extractfile(member).read() for member in tar.getmembers())
    assert content == rows.numpy().astype(dtype).tobytes()
    reading = config(
        **{**changes, "data__sources": "[{kind: lstm}]", "data__kind": "corpus"},
        data__corpora=f"[{{path: {tmp_path / 'rows'}}}]",
    )
    ranks = [training_rows.open_rows(reading)(owned_lanes(LANES, rank, 3), "cpu") for rank in range(3)]
    read = torch.cat([rank.draw(9).unflatten(0, (4, 9)) for rank in ranks]).transpose(0, 1).flatten(0, 1)
    assert read.dtype == (torch.int16 if two_bytes else torch.uint8)
    if changes is MASKED:
        with pytest.raises(UserError, match="form is tokens, but these rows say which tokens are targets"):
            upscale.rows(reading, form="tokens")
    assert torch.equal(read, torch.cat([rows, rows[: LANES * 9 - ROWS]]))


def test_the_same_bytes_from_any_number_of_processes(tmp_path):
    made(tmp_path / "one")
    made(tmp_path / "two", processes=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


class Stop(BaseException):
    """As Ctrl-C, or a kill."""


@pytest.mark.parametrize("shard", [0, 3])
@pytest.mark.parametrize("moment", ["before the shard", "after the shard", "after the state"])
def test_a_stopped_call_is_continued(tmp_path, monkeypatch, shard, moment):
    """Against a call that was not stopped; of a corpus that is not complete, readers say so."""
    made(tmp_path / "whole")
    write, save, count = generation.write_shard, generation.write_atomically, [0]

    def writing(part, **arguments):
        if moment == "before the shard" and part.number == shard:
            (arguments["folder"] / f".train-{shard:05d}.tar.1.tmp").write_bytes(b"half")
            raise Stop
        result = write(part, **arguments)
        if moment == "after the shard" and part.number == shard:
            raise Stop
        return result

    def saving(path, content):
        save(path, content)
        count[0] += 1
        if moment == "after the state" and count[0] == shard + 1:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(generation, "write_shard", writing)
        patch.setattr(generation, "write_atomically", saving)
        with pytest.raises(Stop):
            made(tmp_path / "stopped")
    with pytest.raises(UserError, match="its `upscale generate` has not finished"):
        index.read(tmp_path / "stopped")
    first = tmp_path / "stopped" / "train-00000.tar"
    kept = first.stat().st_ino if shard or moment == "after the state" else None
    made(tmp_path / "stopped")
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")
    assert kept in (None, first.stat().st_ino), "a shard that was done is not written again"


def test_a_complete_corpus_is_found_and_checked(tmp_path):
    first = made(tmp_path / "rows")
    assert made(tmp_path / "rows") == first
    others = [{"rows": 50}, {"run__seeds__rows": 1}, {"run__seeds__order": 1}, {"data__control": "shuffled"}]
    for other in others:
        with pytest.raises(UserError, match="already holds rows with"):
            made(tmp_path / "rows", **other)
    shard = tmp_path / "rows" / "train-00001.tar"
    content = bytearray(shard.read_bytes())
    content[600] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match="train-00001.tar was altered"):
        made(tmp_path / "rows")


def test_mistakes_are_told_before_anything_is_written(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="rows is 0"):
        made(tmp_path / "rows", rows=0)
    with pytest.raises(UserError, match="data.kind is corpus, which has no sources"):
        made(tmp_path / "rows", data__kind="corpus", data__corpora="[{path: x}]")
    assert not (tmp_path / "rows").exists()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(UserError, match="used is not empty"):
        made(tmp_path / "used")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write rows to .*file"):
        made(tmp_path / "file")


def test_another_call_does_not_continue_a_stopped_one(tmp_path, monkeypatch):
    """Other settings, another way of computing, a damaged state, a shard that is gone."""
    with monkeypatch.context() as patch:
        saves = []
        save = generation.write_atomically
        patch.setattr(
            generation, "write_atomically", lambda *given: save(*given) or saves.append(1) or 1 / (len(saves) < 2)
        )
        with pytest.raises(ZeroDivisionError):
            made(tmp_path / "rows")
    with pytest.raises(UserError, match="was begun with .*'seed': 0.* now asked: .*'seed': 1"):
        made(tmp_path / "rows", run__seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(generation.SnapshotRows, "method", "native", raising=False)
        make = generation.SnapshotRows.__init__
        patch.setattr(
            generation.SnapshotRows,
            "__init__",
            lambda self, rows: make(self, rows) or setattr(self, "method", "native"),
        )
        with pytest.raises(UserError, match="begun by rows computed by exact, but here by native"):
            made(tmp_path / "rows")
    shard = tmp_path / "rows" / "train-00000.tar"
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(UserError, match="train-00000.tar is missing"):
        made(tmp_path / "rows")
    shard.write_bytes(content)
    state = tmp_path / "rows" / ".generate" / generation.STATE
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(UserError, match="state.safetensors is damaged"):
        made(tmp_path / "rows")


def test_what_rows_do_not_fit(tmp_path):
    """A longer context, a smaller vocabulary, and bytes among larger tokens: each is told with what to set."""
    made(tmp_path / "rows", **WIDE)
    corpus(tmp_path / "wp", text(1200), {"train": 900, "validation": 200, "test": 100})

    def reading(*folders, **changes):
        listed = ", ".join(f"{{path: {tmp_path / folder}}}" for folder in folders)
        chosen = tiny.config(data__kind="corpus", data__corpora=f"[{listed}]", **{**WIDE, **changes})
        return training_rows.open_rows(chosen)(range(12), "cpu")

    with pytest.raises(UserError, match=r"rows of 17 tokens; model.context = 17 needs 18 .*Set model.context=16"):
        reading("rows", model__context=17)
    with pytest.raises(UserError, match="tokens below 300, but model.vocabulary is 256: set model.vocabulary=300"):
        reading("rows", model__vocabulary=256)
    with pytest.raises(UserError, match="tokens below 256, but model.vocabulary is 128"):
        reading("wp", model__vocabulary=128, evaluation__every=0)
    with pytest.raises(UserError, match="bytes a token differ"):
        reading("rows", "wp")
    assert torch.equal(reading("rows", model__context=9).draw(2)[0], expected(**WIDE)[0, :10])


def test_the_command(tmp_path, capsys):
    given = [*tiny.overrides(data__draw=DRAW, data__sources="[{kind: uniform}]")]
    assert main(["--rows", "1e2", "--to", str(tmp_path / "rows"), "--processes", "1", *given]) == 0
    assert "100 rows of 17 tokens in 1 shards" in capsys.readouterr().out
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "rows" / "train-00000.tar").read_bytes())) as tar:
        assert [member.size for member in tar.getmembers()] == [1700]
    for wrong in ("1.5", "0", "x", "1e300"):
        with pytest.raises(SystemExit):
            main(["--rows", wrong, "--to", str(tmp_path / "x")])
        assert "is not a whole number of rows, such as 1e6" in capsys.readouterr().err
