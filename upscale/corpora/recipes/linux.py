"""linux: the files of a kernel tree, joined."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from upscale.corpora.archives.decompression import Progress
from upscale.corpora.archives.inputs import entries, is_archive, only_compressed_file
from upscale.corpora.recipes.base import Known, Recipe
from upscale.corpora.work.spooling import Spool, spool_files
from upscale.errors import UserError
from upscale.settings import Count

C_SUFFIXES = (b".c", b".h")


class Linux(Recipe):
    definition = "the C sources of Linux, joined in sorted order, runs of whitespace one space unless kept"
    address = "https://cdn.kernel.org/pub/linux/kernel/v6.x/linux-6.1.tar.xz"
    accepts = "a kernel tree, or a tar (xz, gz, bz2, zst) or zip of one"
    licence = "GPL-2.0 WITH Linux-syscall-note, or as the SPDX line of each file says"
    total = 200_000_000
    train = 161_326_322
    validation = 10_000_000
    known = (
        Known(
            r"linux-6\.1\.tar\.xz",
            "sha256",
            "2ca1f17051a430f6fed1196e4952717507171acfd97d96577212502703b25deb",
            of_text=False,
        ),
    )
    of_one_file = False

    kind: Literal["linux"] = "linux"
    take: Count | None = Field(default=200_000_000, alias="bytes")
    whitespace: Literal["collapsed", "kept"] = "collapsed"
    """every run of it one space (default), or as it is"""
    files: Literal["c", "all"] = "c"
    """*.c and *.h (default), or every file"""

    def spool(self, path: Path, file: Path, progress: Progress, processes: int) -> tuple[Spool, int]:
        if not path.is_dir() and not is_archive(path):
            raise UserError(f"{path} is neither a folder nor an archive; allowed: {self.accepts}")
        spool, count = spool_files(
            entries(path, progress, self.wants),
            file,
            collapsed=self.whitespace == "collapsed",
            take=self.take,
            in_order=path.is_dir(),
            processes=processes,
        )
        if len(spool) == 0:
            if not path.is_dir() and (inner := only_compressed_file(path)):
                raise UserError(f"{path} holds one file, {inner}, which is packed itself: unpack it and pass that one")
            kind = "C source (*.c, *.h; --files all takes every file)" if self.files == "c" else "file with a text"
            raise UserError(f"{path} has no {kind}; allowed: {self.accepts}")
        return spool, count

    def wants(self, name: bytes) -> bool:
        """Whether a file of this name is part of the text."""
        return self.files == "all" or name.endswith(C_SUFFIXES)
