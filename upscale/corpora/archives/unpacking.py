"""A file's content behind gzip, bzip2, xz, zstd or nothing, told apart by its first bytes, read as a stream."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import queue
import sys
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from upscale.errors import UserError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BUFFER_BYTES = 1 << 20
PREFETCHED_BLOCKS = 8
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
ZSTD_OPTIONS = {zstd.DecompressionParameter.window_log_max: 31}
"""Windows up to 2 GiB, which `zstd --long=31` writes, instead of 128 MiB."""
UNREADABLE = (
    *(OSError, EOFError, zlib.error, lzma.LZMAError, zstd.ZstdError),
    *(tarfile.TarError, zipfile.BadZipFile, RuntimeError),
)
"""What the readers of packed files raise when those are damaged, truncated or encrypted."""

Progress = Callable[[int], None]
"""Is told of bytes read."""


def cannot_read(path: str | Path, error: OSError) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path} does not exist")
    return UserError(f"{path} cannot be read: {error.strerror or error}")


class Guarded(io.RawIOBase):
    """A stream whose damage is the user's to repair: what goes wrong in reading is a UserError that names the file."""

    def __init__(self, inner, path: str, packing: str | None) -> None:
        self.inner, self.path, self.packing = inner, path, packing

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        try:
            content = self.inner.read(len(buffer))
        except UNREADABLE as error:
            raise damaged(self.path, error) from None
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self.inner.close()
        super().close()


def damaged(path: str | Path, error: BaseException) -> UserError:
    return UserError(f"{path} is damaged or truncated ({error}): download or copy it again")


class Counted(io.RawIOBase):
    """A file that tells how far it was read."""

    def __init__(self, file: BinaryIO, progress: Progress) -> None:
        self.file, self.progress = file, progress

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        count = self.file.readinto(buffer)
        self.progress(count)
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


def unpacked(path: Path, progress: Progress) -> io.BufferedReader:
    """A file's content behind gzip, bzip2, xz, zstd or nothing."""
    counted = Counted(io.FileIO(path), progress)
    raw = io.BufferedReader(counted, BUFFER_BYTES)
    head = raw.peek(6)
    if head.startswith(b"\x1f\x8b"):
        inner, packing = gzip.GzipFile(fileobj=raw), "gzip"
    elif head.startswith(b"BZh"):
        inner, packing = bz2.BZ2File(raw), "bzip2"
    elif head.startswith(b"\xfd7zXZ\x00"):
        inner, packing = lzma.LZMAFile(raw), "xz"  # noqa: SIM115 (closed by the reader around it)
    elif head.startswith(ZSTD_MAGIC):
        inner, packing = zstd.ZstdFile(raw, options=ZSTD_OPTIONS), "zstd"
    else:
        inner, packing = raw, None
    if packing is not None:
        inner = _Prefetched(inner)
    return io.BufferedReader(Guarded(inner, str(path), packing), BUFFER_BYTES)


class _Prefetched:
    """Unpacks a few blocks before they are asked for, on a thread; the libraries release Python's lock meanwhile."""

    def __init__(self, inner) -> None:
        self.inner, self.left, self.ended = inner, b"", None
        self.blocks: queue.Queue = queue.Queue(PREFETCHED_BLOCKS)
        self.closing = False
        self.thread = threading.Thread(target=self._fill, daemon=True)
        self.thread.start()

    def _fill(self) -> None:
        block = None
        while not self.closing and not isinstance(block, BaseException) and block != b"":
            try:
                block = self.inner.read(BUFFER_BYTES)
            except BaseException as error:
                block = error
            self.blocks.put(block)

    def read(self, size: int) -> bytes:
        if not self.left and self.ended is None:
            block = self.blocks.get()
            if block and not isinstance(block, BaseException):
                self.left = block
            else:
                self.ended = block
        if isinstance(self.ended, BaseException):
            raise self.ended
        content, self.left = self.left[:size], self.left[size:]
        return content

    def close(self) -> None:
        self.closing = True
        while self.thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self.blocks.get(timeout=0.01)
        self.inner.close()
