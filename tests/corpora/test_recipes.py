"""A corpus is one file: found by its name, with options of its own on the command line."""

from __future__ import annotations

import importlib

import pytest

from upscale.cli.prepare import main
from upscale.corpora.recipes import PAPER_ORDER, RECIPES, Recipe
from upscale.corpora.shards.reading import Corpus
from upscale.errors import UserError
from upscale.settings import components

POEMS = '''
from typing import Literal

from upscale.corpora.archives.inputs import single_text
from upscale.corpora.recipes.base import Recipe
from upscale.corpora.work.spooling import spool_chunks


class Poems(Recipe):
    definition = "poems of a test"
    address = "http://127.0.0.1:9/poems"
    accepts = "the plain text of the poems"
    licence = "none"
    total, train, validation = 100, 80, 10

    kind: Literal["poems"] = "poems"
    letters: Literal["all", "lower"] = "all"
    """as they are (default), or in lower case"""

    def spool(self, path, file, progress, processes):
        for stream in single_text(path, progress):
            content = stream.read()
        return spool_chunks([content.lower() if self.letters == "lower" else content], file, self.take), None
'''


@pytest.fixture
def poems(tmp_path, monkeypatch):
    """A room with one file is found, and its recipe stands beside the others."""
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / "__init__.py").touch()
    (tmp_path / "shelf" / "poems.py").write_text(POEMS)
    monkeypatch.syspath_prepend(tmp_path)
    found = components(importlib.import_module("shelf"), Recipe)["poems"]
    monkeypatch.setitem(RECIPES, "poems", found)
    importlib.invalidate_caches()
    return found


def test_a_corpus_is_one_file(tmp_path, poems, capsys):
    """Against the text itself: its own option changes it and is recorded, and is refused for other corpora."""
    (tmp_path / "text").write_bytes(b"Shall I compare thee to a summer's day?" * 5)
    given = ["--to", str(tmp_path / "to"), "--from", str(tmp_path / "text"), "--letters", "lower"]
    assert main(["poems", *given]) == 0
    corpus = Corpus.open(tmp_path / "to")
    content = b"".join(split.text().tobytes() for split in corpus.splits.values())
    assert content == (tmp_path / "text").read_bytes().lower()
    assert (corpus.name, corpus.description.options) == ("poems", {"bytes": None, "letters": "lower"})
    assert [len(split) for split in corpus.splits.values()] == [156, 19, 20]
    with pytest.raises(UserError, match="--letters lower is for poems only, not for wp"):
        main(["wp", *given])
    with pytest.raises(UserError, match="--whitespace kept is for linux only, not for poems"):
        main(["poems", *given, "--whitespace", "kept"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "poems: poems of a test" in words and "poems: as they are (default), or in lower case" in words


def test_the_papers_corpora_come_first():
    assert list(RECIPES)[: len(PAPER_ORDER)] == list(PAPER_ORDER)
    assert all(recipe().kind == name for name, recipe in RECIPES.items())
