"""A file's content behind gzip, bzip2, xz, lzma, zstd or nothing, told apart by its first bytes, read as a stream."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import queue
import struct
import sys
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from upscale.corpora.archives import formats
from upscale.errors import UserError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BUFFER_BYTES = 1 << 20
PREFETCHED_BLOCKS = 8
ZSTD_OPTIONS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 31}
"""Windows up to 2 GiB, which `zstd --long=31` writes, instead of 128 MiB."""
LZMA_MEMORY_BYTES = 3 << 30
"""What `xz` may ask for; its largest dictionary is 1.5 GiB."""
LARGEST_RATIO, ALWAYS_ALLOWED_BYTES = 100, 1 << 30
"""Texts pack to a tenth; a file that gives more than a hundred times its size, and more than 1 GiB, is no text."""
UNREADABLE = (
    *(OSError, EOFError, MemoryError, zlib.error, lzma.LZMAError, zstd.ZstdError),
    *(tarfile.TarError, zipfile.BadZipFile, RuntimeError, ValueError, ArithmeticError, LookupError, struct.error),
)
"""What the readers of packed files raise when those are damaged or truncated."""

Progress = Callable[[int], None]
"""Is told of bytes read."""


def cannot_read(path: str | Path, error: OSError) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path} does not exist")
    return UserError(f"{path} cannot be read: {error.strerror or error}")


class Allowance:
    """Counts what an input gives, so that a small one that unpacks without end does not fill the disk."""

    def __init__(self, path: Path) -> None:
        self.path, self.given = path, 0
        self.most = max(ALWAYS_ALLOWED_BYTES, LARGEST_RATIO * path.stat().st_size)

    def __call__(self, count: int) -> None:
        """Raises UserError when it is too much."""
        self.given += count
        if self.given > self.most:
            raise UserError(
                f"{self.path} gives more than {self.most:,} bytes, over {LARGEST_RATIO} times its size: it is no text, "
                "but made to fill a disk. If you mean it, unpack it yourself and pass what it holds."
            )


class Guarded(io.RawIOBase):
    """A stream whose damage is the user's to repair: what goes wrong in reading is a UserError that names the file."""

    def __init__(self, inner, path: str, compression: str | None, allowance: Allowance | None = None) -> None:
        self.inner, self.path, self.compression, self.allowance = inner, path, compression, allowance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        try:
            content = self.inner.read(len(buffer))
        except UNREADABLE as error:
            raise damaged(self.path, error) from None
        buffer[: len(content)] = content
        if self.allowance:
            self.allowance(len(content))
        return len(content)

    def close(self) -> None:
        self.inner.close()
        super().close()


def damaged(path: str | Path, error: BaseException) -> UserError:
    if isinstance(error, MemoryError):  # of a dictionary or window whose size stands in the file
        return UserError(
            f"{path} needs more memory to be unpacked than there is: unpack it elsewhere, or copy it again"
        )
    return UserError(f"{path} is damaged or truncated ({error}): download or copy it again")


class Counted(io.RawIOBase):
    """A file that tells how far it was read."""

    def __init__(self, file: io.FileIO, progress: Progress) -> None:
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


def decompressed(path: Path, progress: Progress) -> io.BufferedReader[Guarded]:
    """A file's content behind gzip, bzip2, xz, lzma, zstd or nothing; its `raw.compression` says which."""
    counted = Counted(io.FileIO(path), progress)
    raw = io.BufferedReader(counted, BUFFER_BYTES)
    compression = formats.compression(raw.peek(BUFFER_BYTES))
    if compression is None:
        return io.BufferedReader(Guarded(raw, str(path), None), BUFFER_BYTES)
    inner = gzip.GzipFile(fileobj=raw) if compression == "gzip" else _Streams(raw, DECOMPRESSORS[compression])
    return io.BufferedReader(Guarded(_Prefetched(inner), str(path), compression, Allowance(path)), BUFFER_BYTES)


DECOMPRESSORS = {
    "bzip2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, LZMA_MEMORY_BYTES),
    "lzma": lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, LZMA_MEMORY_BYTES),
    "zstd": lambda: zstd.ZstdDecompressor(options=ZSTD_OPTIONS),
}


class _Streams:
    """What one or more packed streams hold, one after the other, as parallel packers write them, with zeros between.

    The standard library's files take whatever they cannot read after a first stream for the end, so that all that
    follows a damaged place would be missing without a word.
    """

    def __init__(self, file: io.BufferedIOBase, begin: Callable) -> None:
        self.file, self.begin, self.stream = file, begin, begin()

    def read(self, size: int) -> bytes:
        while True:
            if self.stream.eof:
                given = self.stream.unused_data.lstrip(b"\0")
                while not given and (block := self.file.read(BUFFER_BYTES)):
                    given = block.lstrip(b"\0")
                if not given:
                    return b""
                self.stream = self.begin()
            else:
                given = self.file.read(BUFFER_BYTES) if self.stream.needs_input else b""
                if self.stream.needs_input and not given:
                    raise EOFError("it ends inside a packed stream")
            if content := self.stream.decompress(given, size):
                return content

    def close(self) -> None:
        self.file.close()


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
