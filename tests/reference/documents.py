"""A text of documents, made the obvious way: a list of documents in, the bytes of three splits out."""

from __future__ import annotations

import hashlib


def splits(documents: list[bytes], *, separator: bytes = b"\0", unique: bool = True, held_out: float = 0.1) -> dict:
    """Every document that is not empty, followed by the separator, in the split that its SHA-256 names."""
    found = {"train": b"", "validation": b"", "test": b""}
    before: list[bytes] = []
    for document in documents:
        if not document or (unique and document in before):
            continue
        before.append(document)
        place = int(hashlib.sha256(document).hexdigest()[:16], 16) / 16**16
        split = "validation" if place < held_out / 2 else "test" if place >= 1 - held_out / 2 else "train"
        found[split] += document + separator
    return found
