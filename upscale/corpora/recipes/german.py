"""german: one book of Project Gutenberg, without its front and back matter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from upscale.corpora.archives.decompression import Progress
from upscale.corpora.archives.inputs import single_text
from upscale.corpora.recipes.base import Recipe
from upscale.corpora.work.spooling import Spool, spool_chunks
from upscale.errors import UserError

BOOK_BYTES = 64 << 20

BOOK_START = re.compile(rb"^\*{3} ?START OF (THE|THIS) PROJECT GUTENBERG EBOOK[^\r\n]*\s*", re.MULTILINE)
BOOK_END = re.compile(
    rb"^(\*{3} ?END OF (THE|THIS) PROJECT GUTENBERG EBOOK|End of (the )?Project Gutenberg)", re.MULTILINE
)
CREDITS = re.compile(rb"(Produced by|E-text prepared by)([^\r\n]+\r?\n)+\s*")


class German(Recipe):
    definition = "Die Frauenfrage by Lily Braun, in German: Project Gutenberg 14075"
    address = "https://www.gutenberg.org/cache/epub/14075/pg14075.txt"
    accepts = "the plain text of Project Gutenberg 14075, as it is or packed"
    licence = "public domain in the USA (Project Gutenberg 14075)"
    total = 1_218_419
    train = 800_000
    validation = 200_000
    tolerance = 0.05  # encodings and editions of the one book differ by that much

    kind: Literal["german"] = "german"

    def spool(self, path: Path, file: Path, progress: Progress, processes: int) -> tuple[Spool, None]:
        for stream in single_text(path, progress):
            content = stream.read(BOOK_BYTES)
            if stream.read(1):
                raise UserError(f"{path} is larger than {BOOK_BYTES >> 20} MiB: it is not the book")
        return spool_chunks([book_body(content, path)], file, self.take), None


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
    return content[begin : end.start()].rstrip() + b"\n"
