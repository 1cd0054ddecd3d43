"""Bringing a text onto disk once, unpacked, for shards to be cut from it: in its own order, or of sorted files.

Files come in an archive's order but stand in the text in sorted order, so the spool records where each chunk lies and
the text is read from it out of order. Peak memory is one batch of chunks a process, and the list of chunks.
"""

from __future__ import annotations

import io
import os
from array import array
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from upscale.corpora.archives.inputs import Entry, HardLink
from upscale.corpora.work import parallel
from upscale.errors import UserError

BATCH_BYTES = 4 << 20
CHUNK_BYTES = 1 << 20

Batch = list[tuple[bytes, bool, bytes]]
"""Chunks of files: (name, is it the file's first chunk, content)."""


@dataclass
class Spool:
    """A text as chunks of one file, in the text's order, which need not be the file's."""

    file: Path
    offsets: array
    lengths: array
    splits: dict[str, int] | None = None
    """Bytes of the splits that the text is in the order of; None: it is to be cut."""
    about: dict = field(default_factory=dict)
    """What the index's provenance says of it."""
    form: dict = field(default_factory=dict)
    """The index's `token_bytes` and `vocabulary`, where its tokens are no bytes."""

    def __post_init__(self) -> None:
        self._ends = array("q", accumulate(self.lengths))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, start: int, size: int) -> bytes:
        """The text's bytes from `start` on, `size` of them or all that are left."""
        parts, number = [], bisect_right(self._ends, start)
        with open(self.file, "rb") as file:
            while size > 0 and number < len(self._ends):
                skipped = start - (self._ends[number] - self.lengths[number])
                count = min(size, self.lengths[number] - skipped)
                file.seek(self.offsets[number] + skipped)
                parts.append(file.read(count))
                start, size, number = start + count, size - count, number + 1
        return b"".join(parts)


def collapse(content: bytes) -> bytes:
    """Every run of whitespace (space, tab, line feed, carriage return, vertical tab, form feed) as one space."""
    words = content.split()
    if not words:
        return b" " if content else b""
    return b" " * content[:1].isspace() + b" ".join(words) + b" " * content[-1:].isspace()


def chunks_of(stream: io.BufferedIOBase) -> Iterator[bytes]:
    """What is left of a stream, in pieces of CHUNK_BYTES."""
    return iter(lambda: stream.read(CHUNK_BYTES), b"")


def spool_chunks(chunks: Iterable[bytes], file: Path, take: int | None) -> Spool:
    """A text in its own order, its first `take` bytes."""
    size = 0
    with open(file, "wb") as out:
        for chunk in chunks:
            size += out.write(chunk if take is None else chunk[: take - size])
            if size == take:
                break
    return Spool(file, array("q", [0]), array("q", [size]))


def spool_files(
    entries: Generator[Entry | HardLink, None, None],
    file: Path,
    *,
    collapsed: bool,
    take: int | None,
    in_order: bool,
    processes: int,
) -> tuple[Spool, int]:
    """The first `take` bytes of files joined in sorted order, and how many files they are of.

    Sorted is: paths compared folder by folder, byte by byte, in no locale. With `collapsed` the runs of whitespace of
    the joined text are collapsed, those that cross files too. Of two files of one name the later counts, as in
    unpacking. Entries that come `in_order` are read only as far as needed.
    """
    chunks: dict[bytes, list[tuple[int, int, bool, bool]]] = {}
    links: dict[bytes, bytes] = {}
    count = 0
    change: Callable[[Batch], Batch] = _collapsed if collapsed else list
    changed = parallel.ordered_map(change, _batches(entries, links), processes)
    with open(file, "wb") as out, closing(entries), closing(changed):
        for batch in changed:
            for name, first, content in batch:
                of_file = chunks.setdefault(name, [])
                if first:
                    of_file.clear()
                of_file.append((out.tell(), len(content), content[:1] == b" ", content[-1:] == b" "))
                out.write(content)
            count += len(batch)
            if in_order and take is not None and out.tell() - count >= take:  # a space may go from each chunk
                break
    for name, target in links.items():
        if target not in chunks:
            raise UserError(
                f"{os.fsdecode(name)} is a hard link to {os.fsdecode(target)}, which is not among the files: unpack "
                "the archive and pass the folder"
            )
        chunks[name] = chunks[target]
    return _in_sorted_order(chunks, file, collapsed, take)


def _in_sorted_order(
    chunks: dict[bytes, list[tuple[int, int, bool, bool]]], file: Path, collapsed: bool, take: int | None
) -> tuple[Spool, int]:
    """The spool of (offset, length, begins with a space, ends with one) chunks by file, and its count of files."""
    offsets, lengths, total, files, after_space = array("q"), array("q"), 0, 0, False
    for name in sorted(chunks, key=lambda name: name.split(b"/")):
        files += 1
        for offset, length, begins_with_space, ends_with_space in chunks[name]:
            double = int(collapsed and after_space and begins_with_space)
            kept = length - double if take is None else min(length - double, take - total)
            offsets.append(offset + double)
            lengths.append(kept)
            total += kept
            after_space = ends_with_space if length else after_space
        if total == take:
            break
    return Spool(file, offsets, lengths), files


def _collapsed(batch: Batch) -> Batch:
    return [(name, first, collapse(content)) for name, first, content in batch]


def _batches(entries: Iterable[Entry | HardLink], links: dict[bytes, bytes]) -> Iterator[Batch]:
    """Batches of the files' chunks, at least one a file; hard links are put into `links`."""
    batch: Batch = []
    size = 0
    for entry in entries:
        if isinstance(entry, HardLink):
            links[entry.name] = entry.target
            continue
        links.pop(entry.name, None)
        first = True
        while (content := entry.stream.read(CHUNK_BYTES)) or first:
            batch.append((entry.name, first, content))
            size, first = size + len(content), False
            if size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch
