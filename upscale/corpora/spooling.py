"""Bringing a text onto disk once, unpacked, for shards to be cut from it: sorted files, one space, a book's body.

Files come in an archive's order but stand in the text in sorted order, so the spool keeps where each stretch lies and
the text is read from it out of order. Peak memory is one batch of stretches a process, and the list of places.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path

from upscale.corpora import parallel
from upscale.corpora.inputs import Entry
from upscale.corpora.writing import Spool
from upscale.errors import UserError

STRETCH_BYTES = 1 << 20
BATCH_BYTES = 4 << 20
BOOK_BYTES = 64 << 20

BOOK_START = re.compile(rb"^\*{3} ?START OF (THE|THIS) PROJECT GUTENBERG EBOOK[^\r\n]*\s*", re.MULTILINE)
BOOK_END = re.compile(
    rb"\s*^(\*{3} ?END OF (THE|THIS) PROJECT GUTENBERG EBOOK|End of (the )?Project Gutenberg)", re.MULTILINE
)
CREDITS = re.compile(rb"(Produced by|E-text prepared by)([^\r\n]+\r?\n)+\s*")


def collapse(content: bytes) -> bytes:
    """Every run of whitespace (space, tab, line feed, carriage return, vertical tab, form feed) as one space."""
    words = content.split()
    if not words:
        return b" " if content else b""
    return b" " * content[:1].isspace() + b" ".join(words) + b" " * content[-1:].isspace()


def book_body(content: bytes, path: Path) -> bytes:
    """A Project Gutenberg text without its front and back matter: licence, header, credits and the blank lines there.

    A text without either mark was stripped before and stays as it is. Raises UserError when one of them is missing.
    """
    start, end = BOOK_START.search(content), BOOK_END.search(content)
    if start is None and end is None:
        return content
    if start is None or end is None or end.start() < start.end():
        missing = "START" if start is None else "END"
        raise UserError(
            f"{path} has no line `*** {missing} OF THE PROJECT GUTENBERG EBOOK`, so it is not whole: download it again"
        )
    begin = start.end()
    if credits := CREDITS.match(content, begin):
        begin = credits.end()
    return content[begin : end.start()] + b"\n"


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
    entries: Iterator[Entry], file: Path, *, collapsed: bool, take: int | None, in_order: bool, processes: int
) -> tuple[Spool, int]:
    """The first `take` bytes of files joined in sorted order, and how many files they are of.

    Sorted is: paths compared folder by folder, byte by byte, in no locale. With `collapsed` the runs of whitespace of
    the joined text are collapsed, those that cross files too. Of two files of one name the later counts, as in
    unpacking. Entries that come `in_order` are read only as far as needed.
    """
    places: dict[bytes, list[tuple[int, int, bool, bool]]] = {}
    links: dict[bytes, bytes] = {}
    count = 0
    with open(file, "wb") as out, closing(entries):
        changed = parallel.ordered_map(_Batch(collapse if collapsed else _same), _batches(entries, links), processes)
        with closing(changed):
            for batch in changed:
                for name, first, content in batch:
                    stretches = places.setdefault(name, [])
                    if first:
                        stretches.clear()
                    stretches.append((out.tell(), len(content), content[:1] == b" ", content[-1:] == b" "))
                    out.write(content)
                count += len(batch)
                if in_order and take is not None and out.tell() - count >= take:  # a space may go from each stretch
                    break
    for name, target in links.items():
        if target not in places:
            raise UserError(
                f"{os.fsdecode(name)} is a hard link to {os.fsdecode(target)}, which is not among the files: unpack "
                "the archive and pass the folder"
            )
        places[name] = places[target]
    return _in_sorted_order(places, file, collapsed, take)


def _in_sorted_order(
    places: dict[bytes, list[tuple[int, int, bool, bool]]], file: Path, collapsed: bool, take: int | None
) -> tuple[Spool, int]:
    """The spool of (offset, length, begins with a space, ends with one) stretches by file, and its count of files."""
    offsets, lengths, total, files, after_space = array("q"), array("q"), 0, 0, False
    for name in sorted(places, key=lambda name: name.split(b"/")):
        files += 1
        for offset, length, begins_with_space, ends_with_space in places[name]:
            double = int(collapsed and after_space and begins_with_space)
            kept = length - double if take is None else min(length - double, take - total)
            offsets.append(offset + double)
            lengths.append(kept)
            total += kept
            after_space = ends_with_space if length else after_space
        if total == take:
            break
    return Spool(file, offsets, lengths), files


class _Batch:
    """Applies a change to every stretch of a batch; a class, so that other processes can be sent it."""

    def __init__(self, change: Callable[[bytes], bytes]) -> None:
        self.change = change

    def __call__(self, batch: list[tuple[bytes, bool, bytes]]) -> list[tuple[bytes, bool, bytes]]:
        return [(name, first, self.change(content)) for name, first, content in batch]


def _same(content: bytes) -> bytes:
    return content


def _batches(entries: Iterator[Entry], links: dict[bytes, bytes]) -> Iterator[list[tuple[bytes, bool, bytes]]]:
    """Lists of (name, is it the file's first stretch, content); hard links are put into `links`."""
    batch, size = [], 0
    for entry in entries:
        if entry.stream is None:
            links[entry.name] = entry.link
            continue
        links.pop(entry.name, None)
        first = True
        while (content := entry.stream.read(STRETCH_BYTES)) or first:
            batch.append((entry.name, first, content))
            size, first = size + len(content), False
            if size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch
