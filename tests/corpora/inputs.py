"""A small kernel tree with every difficulty, and its packings, made with the usual programs' own libraries."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import tarfile
import zipfile
from pathlib import Path

import numpy as np

from upscale.corpora.archives.decompression import zstd


def source(size: int, seed: int) -> bytes:
    """Words of letters and every kind of whitespace, in runs."""
    alphabet = np.frombuffer(b"abcdef;{}()   \t\t\n\n\r\v\f\x85\xa0", np.uint8)
    return np.random.default_rng(seed).choice(alphabet, size).tobytes()


KERNEL = {
    "linux-6.1/init/main.c": source(5000, 0),
    "linux-6.1/Makefile": b"all:\n\tmake\n",
    "linux-6.1/a.c": b"  leading and trailing \n\n",
    "linux-6.1/a/b.c": b"\n\n  after a folder's own sibling",
    "linux-6.1/a-b/c.h": b"no end of line",
    "linux-6.1/a-b/d.h": b" \t\n",
    "linux-6.1/a-b/e.h": b"",
    "linux-6.1/a-b/f.h": b"\nbegins with one",
    "linux-6.1/a-b/Z.h": b"upper case comes first\n",
    "linux-6.1/drivers/größe.c": source(300, 1),
    "linux-6.1/drivers/_x.c": source(3000, 2),
    "linux-6.1/.git/config.c": b"not a source",
    "linux-6.1/drivers/.git": b"gitdir: elsewhere",
    "linux-6.1/drivers/logo.ppm": bytes(range(256)),
}
"""Sorted by folders, `a` comes before `a-b` and `a.c`; sorted as plain strings it would not."""


def write_tree(folder: Path, files: dict[str, bytes] = KERNEL) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def tar(files: dict[str, bytes] = KERNEL, extra: list[tarfile.TarInfo] = (), format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of the files in random order, with folders, a symbolic link inside, and further members."""
    names = random.Random(5).sample(sorted(files), len(files))
    folder, link = tarfile.TarInfo("linux-6.1/init"), tarfile.TarInfo("./linux-6.1/drivers/link.c")
    folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, "../init/main.c"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        archive.addfile(folder)
        for name in names:
            member = tarfile.TarInfo(f"./{name}" if name.endswith("a.c") else name)
            member.size, member.mtime = len(files[name]), 1_600_000_000
            archive.addfile(member, io.BytesIO(files[name]))
        for member in [link, *extra]:
            archive.addfile(member)
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def zstd_with_checksum(content: bytes) -> bytes:
    """As the program `zstd` writes it."""
    return zstd.compress(content, options={zstd.CompressionParameter.checksum_flag: True})


PACKINGS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd_with_checksum}
