"""What is known of the four corpora: where they come from, their checksums, the published splits, their licences."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """A file whose content is known by its name, or by the address it came from."""

    pattern: str
    """What the whole of the name or address must match."""
    algorithm: str
    digest: str
    of_text: bool
    """The digest is of the text, so that it holds for every packing; else of the file as it is downloaded."""


@dataclass(frozen=True)
class Origin:
    """One corpus. `total`, `train` and `validation` are the published sizes in bytes; the test split is the rest."""

    definition: str
    address: str
    also: str
    """Other inputs, for messages."""
    licence: str
    total: int
    train: int
    validation: int
    tolerance: float
    """The published sizes apply to texts whose size differs from `total` by at most this share."""
    known: tuple[Known, ...] = ()
    take: int | None = None
    """Bytes of text taken when nothing else is asked; None: all."""

    def sizes(self, total: int) -> dict[str, int]:
        """Bytes of the three splits of a text: as published, or in proportion where the text is another one."""
        train, validation = self.train, self.validation
        if abs(total - self.total) > self.tolerance * self.total:
            train, validation = (total * part // self.total for part in (train, validation))
        return {"train": train, "validation": validation, "test": total - train - validation}

    def expected(self, name: str, address: str | None) -> Known | None:
        """What is known of a file of this name, or from this address."""
        names = [given for given in (name, address) if given]
        return next((known for known in self.known if any(re.fullmatch(known.pattern, given) for given in names)), None)


PACKED = r"(\.(zip|gz|xz|bz2|zst))?"

CORPORA = {
    "wp": Origin(
        definition="English Wikipedia as XML, markup included: enwik8",
        address="http://mattmahoney.net/dc/enwik8.zip",
        also="enwik8 or enwik9 as it is or packed (zip, gz, xz, bz2, zst), or a MediaWiki XML dump",
        licence="CC BY-SA 3.0 and GFDL; the authors are in each page's history",
        total=100_000_000,
        train=90_000_000,
        validation=5_000_000,
        tolerance=0,
        known=(
            Known(r"enwik8" + PACKED, "md5", "a1fa5ffddb56f4953e226637dabbb36a", of_text=True),
            Known(r"enwik9" + PACKED, "md5", "e206c3450ac99950df65bf70ef61a12d", of_text=True),
        ),
    ),
    "linux": Origin(
        definition="the C sources of Linux, joined in sorted order, runs of whitespace one space unless kept",
        address="https://cdn.kernel.org/pub/linux/kernel/v6.x/linux-6.1.tar.xz",
        also="a kernel tree, or a tar (xz, gz, bz2, zst) or zip of one",
        licence="GPL-2.0 WITH Linux-syscall-note, or as the SPDX line of each file says",
        total=200_000_000,
        train=161_326_322,
        validation=10_000_000,
        tolerance=0,
        take=200_000_000,
        known=(
            Known(
                r"linux-6\.1\.tar\.xz",
                "sha256",
                "2ca1f17051a430f6fed1196e4952717507171acfd97d96577212502703b25deb",
                of_text=False,
            ),
        ),
    ),
    "german": Origin(
        definition="Die Frauenfrage by Lily Braun, in German: Project Gutenberg 14075",
        address="https://www.gutenberg.org/cache/epub/14075/pg14075.txt",
        also="the plain text of Project Gutenberg 14075, as it is or packed",
        licence="public domain in the USA (Project Gutenberg 14075)",
        total=1_218_419,
        train=800_000,
        validation=200_000,
        tolerance=0.05,  # encodings and editions of the one book differ by that much
    ),
    "code": Origin(
        definition="D3, minified JavaScript: d3.min.js",
        address="https://cdn.jsdelivr.net/npm/d3@7.9.0/dist/d3.min.js",
        also="d3.min.js or d3.v7.min.js, as it is or packed",
        licence="ISC, Copyright Mike Bostock",
        total=279_703,
        train=170_000,
        validation=40_000,
        tolerance=0.05,  # releases of version 7
        known=(
            Known(  # every release has the same file name, so only the address says which it is
                r"https://.*/d3@7\.9\.0/.*",
                "sha256",
                "f2094bbf6141b359722c4fe454eb6c4b0f0e42cc10cc7af921fc158fceb86539",
                of_text=False,
            ),
        ),
    ),
}
