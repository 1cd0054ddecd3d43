"""Writing splits as tar shards: the same text gives the same bytes on any machine, with any number of processes."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from upscale.corpora.shards import index
from upscale.corpora.shards.index import BLOCK, PIECE_BYTES, SHARD_PIECES, Shard
from upscale.corpora.work import parallel
from upscale.corpora.work.spooling import Spool
from upscale.files import replacing


class Text(Protocol):
    """What shards are cut from: a `Spool`, or anything else that is read like one."""

    def read(self, start: int, size: int) -> bytes:
        """The text's bytes from `start` on, `size` of them or all that are left."""


@dataclass(frozen=True)
class Part:
    """The range of the text that becomes one shard."""

    split: str
    number: int
    start: int
    text_bytes: int


def plan(sizes: dict[str, int], shard_bytes: int) -> Iterator[Part]:
    """The shards of consecutive splits; a split begins with a new shard."""
    split_start = 0
    for split, size in sizes.items():
        for number, start in enumerate(range(0, size, shard_bytes)):
            yield Part(split, number, split_start + start, min(shard_bytes, size - start))
        split_start += size


def write_shard(part: Part, *, spool: Text, folder: Path, piece_bytes: int, shard_pieces: int) -> tuple[Part, Shard]:
    """One tar file, complete or not there under its name; raises OSError."""
    path = folder / f"{part.split}-{part.number:05d}.tar"
    digest, size = hashlib.sha256(), 0
    with replacing(path) as file:
        for block in _tar(part, spool, piece_bytes, shard_pieces):
            digest.update(block)
            size += file.write(block)
    return part, Shard(path.name, size, part.text_bytes, digest.hexdigest())


def _tar(part: Part, spool: Text, piece_bytes: int, shard_pieces: int) -> Iterator[bytes]:
    """The shard's bytes, a piece at a time; headers carry nothing of this machine, user or day."""
    for place in range(0, part.text_bytes, piece_bytes):
        text = spool.read(part.start + place, min(piece_bytes, part.text_bytes - place))
        header = tarfile.TarInfo(f"{part.split}-{part.number * shard_pieces + place // piece_bytes:08d}.bin")
        header.size, header.mode = len(text), 0o644
        yield header.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
        yield text
        yield bytes(-len(text) % BLOCK)
    yield bytes(2 * BLOCK)


def write_corpus(
    spool: Spool,
    sizes: dict[str, int],
    folder: Path,
    *,
    about: dict,
    processes: int = 1,
    progress: Callable[[int], object] = lambda text_bytes: None,
    piece_bytes: int = PIECE_BYTES,
    shard_pieces: int = SHARD_PIECES,
) -> index.Index:
    """The index of consecutive splits of these sizes, after writing their shards and it, which makes them a corpus.

    `about` has the Index's corpus, options, licence and provenance; `progress` is told the bytes of text in each shard
    written. Raises OSError (disk full, no permission).
    """
    shards: dict[str, list[Shard]] = {split: [] for split in sizes}
    write = partial(write_shard, spool=spool, folder=folder, piece_bytes=piece_bytes, shard_pieces=shard_pieces)
    with closing(parallel.ordered_map(write, plan(sizes, piece_bytes * shard_pieces), processes)) as written:
        for part, shard in written:
            shards[part.split].append(shard)
            progress(part.text_bytes)
    found = index.Index(piece_bytes=piece_bytes, shard_pieces=shard_pieces, splits=shards, **about)
    found.write(folder)
    return found
