"""The shipped texts against their checksums and notices, and the user's own files against the stated rules."""

from __future__ import annotations

import dataclasses
import hashlib
import lzma
from pathlib import Path

import pytest

from tests.corpora.small import corpus, text
from upscale.errors import UserError
from upscale.evaluation import suite
from upscale.evaluation.dataset import EvaluationError
from upscale.evaluation.tasks import TEXTS
from upscale.evaluation.tasks import text as text_task

FOLDER = Path(suite.__file__).parent / "texts"
SIZES = {"wp": 278_661, "code": 279_706, "linux": 244_735}


@pytest.mark.parametrize("name", SIZES)
def test_excerpt_is_the_documented_one(name):
    """Against the sizes and SHA-256 in texts/README.md, which also names each licence."""
    dataset = TEXTS[name].load()
    assert (dataset.kind, dataset.split, dataset.skipped) == ("text", "excerpt", None)
    assert len(dataset.data) == SIZES[name]
    assert hashlib.sha256(dataset.data.tobytes()).hexdigest() == dataset.digest == TEXTS[name].sha256
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    section = readme.split(f"## {name}.xz")[1].split("\n## ")[0]
    assert (
        dataset.digest in section and f"{SIZES[name]:,} bytes".replace(",", " ") in section and "Licence: " in section
    )


def test_excerpts_are_what_their_names_say():
    """Against the documented form: XML of whole pages, C with single spaces only, D3 with its licence line."""
    wp, code, linux = (TEXTS[name].load().data.tobytes() for name in ("wp", "code", "linux"))
    assert (
        wp.startswith(b"  <page>\n")
        and wp.endswith(b"  </page>\n")
        and wp.count(b"<page>") == wp.count(b"</page>") == 6
    )
    assert code.startswith(b"// https://d3js.org v7.9.0 Copyright 2010-2023 Mike Bostock\n")
    assert linux.count(b"SPDX-License-Identifier: GPL-2.0") == 6 and b"dual license strategy: BSD/GPL" in linux
    assert b"  " not in linux and not set(linux) & set(b"\t\n\r\f\v")


def test_a_changed_excerpt_is_refused(monkeypatch, tmp_path):
    """Against the contract: another content, a damaged file or none is an error that says what to do."""
    (tmp_path / "texts").mkdir()
    monkeypatch.setattr(text_task.resources, "files", lambda package: tmp_path)
    file = tmp_path / "texts" / "wp.xz"
    for content, complaint in (
        (None, "cannot be read"),
        (b"no xz", "cannot be read"),
        (lzma.compress(b"x"), "has changed"),
    ):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(EvaluationError, match=f"wp.xz {complaint}.*evaluation.data_dir"):
            TEXTS["wp"].load()


def test_checksum_is_of_the_uncompressed_bytes():
    """Against a task with another checksum, which must fail for the shipped file."""
    with pytest.raises(EvaluationError, match="has changed"):
        dataclasses.replace(TEXTS["code"], sha256="0" * 64).load()


@pytest.mark.parametrize("suffix", ["", ".txt", ".test"])
@pytest.mark.parametrize("name", ["wp", "german"])
def test_own_files_come_first(tmp_path, name, suffix):
    """Against the contract: a file NAME, NAME.txt or NAME.test is used whole, as bytes, and recorded as data_dir."""
    (tmp_path / (name + suffix)).write_bytes(bytes(range(256)) * 4)
    dataset = TEXTS[name].load(data_dir=tmp_path)
    assert dataset.split == "data_dir" and dataset.skipped is None
    assert dataset.data.tobytes() == bytes(range(256)) * 4


def test_texts_without_own_file(tmp_path):
    """Against the contract: the excerpt where one ships (a folder of that name does not count), else a reason."""
    (tmp_path / "wp").mkdir()
    assert TEXTS["wp"].load(data_dir=tmp_path).split == "excerpt"
    german = TEXTS["german"].load(data_dir=tmp_path)
    assert german.split is None and len(german.data) == 0
    assert "german.txt" in german.skipped and "evaluation.data_dir" in german.skipped


def test_prepared_corpora_give_their_held_out_split(tmp_path):
    """Against slices of what was prepared: a folder of corpora or one corpus; the other texts keep their excerpt."""
    content = text(1000)
    corpus(tmp_path / "german", content, {"train": 500, "validation": 300, "test": 200}, name="german")
    for data_dir in (tmp_path, tmp_path / "german"):
        for split, expected in (("validation", content[500:800]), ("test", content[800:])):
            wp, german = suite.datasets(["wp", "german"], data_dir=data_dir, split=split)
            assert (german.split, german.data.tobytes()) == (split, expected)
            assert wp.split == "excerpt"
    (tmp_path / "german" / "test-00000.tar").unlink()
    assert TEXTS["german"].load(data_dir=tmp_path).split == "validation"
    with pytest.raises(UserError, match="test-00000.tar is missing"):
        TEXTS["german"].load(data_dir=tmp_path, split="test")


def test_mistakes_in_data_dir(tmp_path):
    """Against the contract: no directory, an empty file and two candidates are errors that name the setting."""
    with pytest.raises(EvaluationError, match="evaluation.data_dir is .*nowhere.*not a directory"):
        TEXTS["wp"].load(data_dir=tmp_path / "nowhere")
    (tmp_path / "wp.txt").touch()
    with pytest.raises(EvaluationError, match="wp.txt in evaluation.data_dir is empty"):
        TEXTS["wp"].load(data_dir=tmp_path)
    (tmp_path / "wp").write_bytes(b"x")
    with pytest.raises(EvaluationError, match="keep one of them"):
        TEXTS["wp"].load(data_dir=tmp_path)
    (tmp_path / "linux" / "kernel").mkdir(parents=True)
    with pytest.raises(UserError, match="linux is not a prepared corpus"):
        TEXTS["linux"].load(data_dir=tmp_path)
