"""Small prepared corpora for tests: pieces and shards so small that windows cross them all the time."""

from __future__ import annotations

from array import array
from pathlib import Path

import numpy as np

from upscale.corpora.prepare import Request
from upscale.corpora.recipes import RECIPES
from upscale.corpora.shards.index import Index
from upscale.corpora.shards.writing import write_corpus
from upscale.corpora.work.spooling import Spool

ABOUT = {"options": {}, "licence": "none: made by a test", "provenance": {}}


def text(size: int, seed: int = 0) -> bytes:
    """Random bytes: no two stretches of it are alike, so that a wrong place is noticed."""
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8).tobytes()


def corpus(folder: Path, content: bytes, sizes: dict[str, int], *, name: str = "wp", piece_bytes=100, shard_pieces=3):
    """A corpus of these bytes as `upscale prepare` would write it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "spool"
    file.write_bytes(content)
    spool = Spool(file, array("q", [0]), array("q", [len(content)]))
    about = {"corpus": name, **ABOUT}
    written: Index = write_corpus(spool, sizes, folder, about=about, piece_bytes=piece_bytes, shard_pieces=shard_pieces)
    file.unlink()
    return written


def request(
    corpus: str, to: Path, source: Path | str, *, processes: int = 1, checksum: bool = True, **asked
) -> Request:
    """A request for a corpus with these options of its recipe; of the whole text, unless `take` is given."""
    recipe = RECIPES[corpus](**{"take": None, **asked})
    return Request(recipe, to, str(source), processes, checksum)
