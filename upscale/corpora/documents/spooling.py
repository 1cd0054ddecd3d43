"""Documents as one text of three splits: checked, without duplicates, each in the split that its content names."""

from __future__ import annotations

import codecs
import hashlib
from array import array
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from upscale.corpora.documents.reading import Document
from upscale.corpora.shards.index import SPLITS
from upscale.corpora.work.spooling import Spool
from upscale.errors import UserError

KEY_BYTES = 16
"""Of a document's SHA-256, kept for every document while duplicates are dropped."""


def split_of(digest: bytes, held_out: float) -> str:
    """The split of a document with this SHA-256.

    The first 8 bytes are a number between 0 and 1: below held_out / 2 validation, from 1 - held_out / 2 on test. So a
    document's split is its own, whatever else is in the corpus, and with a larger share no document becomes train.
    """
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < held_out / 2:
        return "validation"
    return "test" if place >= 1 - held_out / 2 else "train"


def spool_documents(
    documents: Iterable[Document],
    file: Path,
    *,
    separator: bytes,
    unique: bool,
    held_out: float,
    take: int | None,
    utf8: bool,
) -> Spool:
    """The documents' text, each followed by the separator: train, then validation, then test, each in the order given.

    Documents are taken until they have `take` bytes (None: all), the last one whole. Of one document alone the splits
    are left to the recipe's shares. Raises UserError for one that is not UTF-8 (`utf8`) or holds the separator's zero
    byte.
    """
    places = {split: (array("q"), array("q")) for split in SPLITS}
    seen: set[bytes] = set()
    count = duplicates = 0
    with open(file, "wb") as out:
        for document in documents:
            start = out.tell()
            digest = hashlib.sha256()
            for chunk in _checked(document, utf8, separator):
                digest.update(chunk)
                out.write(chunk)
            size = out.tell() - start
            key = digest.digest()
            if not size or (unique and key[:KEY_BYTES] in seen):
                duplicates += bool(size)
                out.seek(start)
                out.truncate()
                continue
            if unique:
                seen.add(key[:KEY_BYTES])
            count += 1
            offsets, lengths = places[split_of(key, held_out)]
            offsets.append(start)
            lengths.append(size + out.write(separator))
            if take is not None and out.tell() >= take:
                break
    spool = Spool(
        file,
        array("q", (each for offsets, _ in places.values() for each in offsets)),
        array("q", (each for _, lengths in places.values() for each in lengths)),
    )
    spool.about = {"documents": count, "duplicates": duplicates} if unique else {"documents": count}
    if count > 1:
        spool.splits = {split: sum(lengths) for split, (_, lengths) in places.items()}
    return spool


def _checked(document: Document, utf8: bool, separator: bytes) -> Iterator[bytes]:
    """A document's chunks; raises UserError at a byte that it may not hold."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    read = 0
    for chunk in chain(document.chunks, [b""]):
        if separator == b"\0" and b"\0" in chunk:
            raise UserError(
                f"{document.where} holds a zero byte, which separates documents: give --separator blank or none, or "
                "leave it out if it is no text"
            )
        if utf8:
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                kept = len(error.object) - len(chunk)  # of a character that the chunk before began
                found, place = error.object[error.start], read - kept + error.start
                raise UserError(
                    f"{document.where} is not UTF-8: at byte {place:,} stands {found:#04x}. Turn it into UTF-8 "
                    "(`iconv -f latin1 -t UTF-8`, or from what it is), or take the bytes of all documents as they are "
                    "with --encoding any"
                ) from None
        read += len(chunk)
        yield chunk
