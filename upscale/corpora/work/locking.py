"""One writer at a time in the folder of a corpus that is being made."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from upscale.corpora.shards import index
from upscale.errors import UserError


@contextmanager
def locked(to: Path, verb: str) -> Iterator[Path]:
    """The working folder in `to`, which is made, as long as nobody else has it; `verb` is the command's name.

    Raises UserError where another process has it, or has just completed the corpus, and OSError.
    """
    work = to / index.WORK[verb]
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another `upscale {verb}` is writing to {to}: wait for it, or choose another --to"
            ) from None
        if (to / index.INDEX).exists():  # between the caller's look and the lock
            raise UserError(f"another `upscale {verb}` has just completed {to}: run this one again to check it")
        yield work
