"""What a corpus must hold, in the most obvious way: everything in memory, one expression a rule."""

from __future__ import annotations

import re


def linux(files: dict[str, bytes], *, collapsed: bool = True, every: bool = False, take: int | None = None) -> bytes:
    """The C files joined in sorted order, git's own left out; then the whitespace of the whole; then its head."""
    files = {name: content for name, content in files.items() if ".git" not in name.split("/")}
    names = sorted((name for name in files if every or name.endswith((".c", ".h"))), key=lambda name: name.split("/"))
    joined = b"".join(files[name] for name in names)
    if collapsed:
        joined = re.sub(rb"[ \t\n\r\v\f]+", b" ", joined)
    return joined[:take]


def splits(text: bytes, train: int, validation: int) -> dict[str, bytes]:
    return {
        "train": text[:train],
        "validation": text[train : train + validation],
        "test": text[train + validation :],
    }
