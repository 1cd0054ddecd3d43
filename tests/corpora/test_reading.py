"""Windows and splits against slices of the text itself, draws against the slow Philox, bad shards against the rules."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.corpora.small import corpus, text
from tests.reference.philox import word
from upscale.corpora.shards import index
from upscale.corpora.shards.reading import Corpus, Split, Windows
from upscale.errors import RunError, UserError
from upscale.randomness.streams import Purpose

SIZES = {"train": 1234, "validation": 300, "test": 7}
"""Train: 12 pieces and 34 bytes in 5 shards; validation: a whole shard exactly; test: less than a piece."""
CONTENT = text(sum(SIZES.values()))


@pytest.fixture
def folder(tmp_path):
    corpus(tmp_path / "wp", CONTENT, SIZES)
    return tmp_path / "wp"


def test_splits_are_the_text(folder):
    splits = Corpus.open(folder).splits
    assert b"".join(splits[name].text().tobytes() for name in SIZES) == CONTENT
    assert {name: len(split) for name, split in splits.items()} == SIZES


def test_every_stretch_can_be_read(folder):
    """Against slices: every start, lengths that lie in a piece, cross a piece, a shard, and several shards."""
    split = Corpus.open(folder).splits["train"]
    for length in (1, 99, 100, 101, 350, 700):
        for start in range(SIZES["train"] - length + 1):
            assert split.read(start, length) == CONTENT[start : start + length], (start, length)
        starts = np.arange(SIZES["train"] - length + 1)
        expected = [CONTENT[start : start + length] for start in starts]
        assert [bytes(stretch) for stretch in split.read_each(starts, length)] == expected


def expected_window(seed: int, instance: int, context: int, contents: list[bytes], weights: list[float]) -> bytes:
    """One window from plain Python integers: word 0 chooses the corpus, words 1 and 2 the start."""
    lane, round_number = instance % (1 << 32), instance >> 32
    first, second, third = (word(seed, lane, round_number, Purpose.DATA_ORDER, place) for place in range(3))
    share, corpus_number = first / (1 << 32) * sum(weights), 0
    while share >= sum(weights[: corpus_number + 1]):
        corpus_number += 1
    content = contents[corpus_number]
    start = ((second << 31) + (third >> 1)) % (len(content) - context)
    return content[start : start + context + 1]


@pytest.mark.parametrize("seed", [0, (1 << 63) + 5])
def test_windows_are_those_of_the_slow_reference(folder, tmp_path, seed):
    """Against tests/reference/philox.py and slices, with two corpora and weights, beyond 2^32 instances too."""
    other = text(400, seed=1)
    corpus(tmp_path / "linux", other, {"train": 390, "validation": 5, "test": 5}, name="linux", piece_bytes=64)
    weights = [3.0, 0.5]
    windows = Windows.open([folder, tmp_path / "linux"], weights=weights, context=150, seed=seed)
    instances = [*range(300), 20_000_000, (1 << 32) - 1, 1 << 32, (1 << 40) + 7]
    rows = windows.rows(torch.tensor(instances))
    assert rows.dtype == torch.uint8 and rows.shape == (len(instances), 151)
    contents = [CONTENT[: SIZES["train"]], other[:390]]
    for row, instance in zip(rows, instances, strict=True):
        assert row.numpy().tobytes() == expected_window(seed, instance, 150, contents, weights), instance


def test_any_world_reads_the_same_windows(folder):
    """Against one call: any division of a step's instances among ranks, any order, any chunking, and a fresh start."""
    whole = Windows.open([folder], context=20, seed=3).rows(torch.arange(60))
    for ranks in (2, 3, 4, 7):
        parts = [
            Windows.open([folder], context=20, seed=3).rows(torch.arange(60).tensor_split(ranks)[rank])
            for rank in range(ranks)
        ]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(Windows.open([folder], context=20, seed=3).rows(torch.arange(59, -1, -1)).flip(0), whole)
    assert Windows.open([folder], context=20, seed=3).rows(torch.arange(0)).shape == (0, 21)
    assert not torch.equal(Windows.open([folder], context=20, seed=4).rows(torch.arange(60)), whole)


def test_starts_and_weights_are_what_was_asked(folder, tmp_path):
    """Against binomial spread: 5 standard deviations of a fixed draw; every start of a small split is met."""
    corpus(tmp_path / "code", text(90), {"train": 90, "validation": 0, "test": 0}, name="code")
    count = 10_000
    windows = Windows.open([folder, tmp_path / "code"], weights=[1, 3], context=16, seed=0)
    corpora, starts = windows.places(torch.arange(count))
    assert abs((corpora == 1).sum().item() - 0.75 * count) < 5 * (count * 0.75 * 0.25) ** 0.5
    hits = torch.bincount(starts[corpora == 1], minlength=74)
    expected = 0.75 * count / 74
    assert len(hits) == 90 - 16 and (hits - expected).abs().max() < 5 * expected**0.5
    even, _ = Windows.open([folder, tmp_path / "code"], context=16, seed=0).places(torch.arange(count))
    share = 74 / (74 + 1234 - 16)
    assert abs((even == 1).sum().item() - share * count) < 5 * (count * share) ** 0.5


def test_the_smallest_split_gives_its_one_window(folder):
    windows = Windows.open([folder], split="test", context=6, seed=0)
    assert windows.rows(torch.arange(3)).numpy().tobytes() == 3 * CONTENT[-7:]
    with pytest.raises(UserError, match=r"test split of .*wp has 7 bytes; one window needs 8 .*model.context"):
        Windows.open([folder], split="test", context=7, seed=0)


def test_bad_shards_are_all_named_before_anything_is_read(folder):
    """Missing, truncated and altered at once: each named with its reason, good ones not."""
    (folder / "train-00001.tar").unlink()
    os.truncate(folder / "train-00002.tar", 900)
    content = bytearray((folder / "train-00003.tar").read_bytes())
    content[700] ^= 1
    (folder / "train-00003.tar").write_bytes(content)
    with pytest.raises(UserError) as caught:
        Windows.open([folder], context=16, seed=0)
    message = str(caught.value)
    assert "train-00001.tar is missing" in message
    assert "train-00002.tar has 900 bytes instead of 4096" in message
    assert "train-00003.tar was altered" in message
    assert "train-00000" not in message and "train-00004" not in message
    assert "validation" not in message
    with pytest.raises(UserError, match="00001.tar is missing") as caught:
        Windows.open([folder], context=16, seed=0, hashes=False)
    assert "00003" not in str(caught.value)
    assert len(Corpus.open(folder, splits=["validation"]).splits["validation"]) == 300


def test_bad_folders_are_all_named(folder, tmp_path):
    (tmp_path / "unfinished" / index.WORK["prepare"]).mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "altered").mkdir()
    (tmp_path / "altered" / index.INDEX).write_text((folder / index.INDEX).read_text().replace("1234", "1235"))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / index.INDEX).write_text("{}")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / index.INDEX).write_text("<html>")
    names = ["unfinished", "empty", "altered", "foreign", "broken", "nowhere"]
    with pytest.raises(UserError) as caught:
        Windows.open([folder, *(tmp_path / name for name in names)], context=16, seed=0)
    lines = dict(zip(names, str(caught.value).splitlines(), strict=True))
    assert "`upscale prepare` has not finished" in lines["unfinished"]
    assert "has no index.json" in lines["empty"]
    assert "checksum does not match" in lines["altered"]
    assert "not of the format" in lines["foreign"]
    assert "cannot be read" in lines["broken"]
    assert "no such folder" in lines["nowhere"]


def test_mistakes_in_the_call(folder):
    with pytest.raises(UserError, match="no corpus was given"):
        Windows.open([], context=16, seed=0)
    for weights in ([1.0, 1.0], [0.0], [-1.0], [float("nan")]):
        with pytest.raises(UserError, match="one positive number for each"):
            Windows.open([folder], weights=weights, context=16, seed=0)
    with pytest.raises(UserError, match="has no split trian; it has train, validation, test"):
        Windows.open([folder], split="trian", context=16, seed=0)


def test_a_read_only_folder_is_enough(folder):
    """Nothing is written beside the shards: the listing and the times of change stay as they were."""
    before = {path.name: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]}
    Windows.open([folder], context=16, seed=0).rows(torch.arange(50))
    assert {path.name: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]} == before


@pytest.mark.parametrize("damage", ["cut", "cut at a shard's end", "a folder"])
def test_a_shard_that_goes_bad_while_it_is_read_is_named(folder, damage):
    """A real truncation after the check, which ends a process that has mapped the file; and an error of reading."""
    windows = Windows.open([folder], context=16, seed=0)
    windows.rows(torch.arange(10))
    for file in sorted(folder.glob("train-*.tar")):
        if damage == "a folder":
            file.unlink()
            file.mkdir()
            windows = Windows([Split(folder, index.read(folder), "train")], [1], context=16, seed=0)
        else:
            os.truncate(file, 700 if damage == "cut" else 0)
    with pytest.raises(
        RunError, match=r"train-0000\d.tar (was cut while in use: it ends before byte|cannot be opened: Is a dir)"
    ):
        windows.rows(torch.arange(200))


def test_a_corpus_of_more_shards_than_files_may_be_open(tmp_path):
    """With a limit of 32 files, as `ulimit -S -n 32` sets it, and 60 shards: it is raised; a hard one is named."""
    corpus(
        tmp_path / "wp", CONTENT, {"train": len(CONTENT), "validation": 0, "test": 0}, piece_bytes=13, shard_pieces=2
    )
    program = """if True:
        import resource, sys
        import numpy as np
        from upscale.corpora.shards.reading import Corpus
        from upscale.errors import RunError
        split = Corpus.open(sys.argv[1]).splits["train"]
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, int(sys.argv[2])))
        try:
            print(split.read(0, len(split)).hex())
        except RunError as error:
            print(error)
    """
    said = [
        subprocess.run(
            [sys.executable, "-c", program, tmp_path / "wp", limit],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout.strip()
        for limit in ("2000", "32")
    ]
    assert said[0] == CONTENT.hex()
    assert "cannot be opened: Too many open files" in said[1]
