"""What a file is, told by its first bytes, not by its name: what is read, and what is refused by name with advice."""

from __future__ import annotations

import re
import tarfile

HEAD_BYTES = 1 << 20
"""So many first bytes decide, or all of a smaller file."""

COMPRESSIONS = {
    "gzip": re.compile(rb"\x1f\x8b"),
    "bzip2": re.compile(rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90)"),
    "xz": re.compile(rb"\xfd7zXZ\x00"),
    "lzma": re.compile(rb"\x5d\x00\x00.{2}(\xff{8}|.{5}\x00{3})", re.DOTALL),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd"),
}
ZIP = re.compile(rb"PK(\x03\x04|\x05\x06)")
# Both zstd and LZ4 may begin with frames that are to be skipped: pzstd puts one before each of its frames.
SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18(.{4})", re.DOTALL)

TAR_MAGIC, TAR_MAGIC_PLACE = b"ustar", 257
TAR_END = bytes(tarfile.BLOCKSIZE)

UNPACK = "unpack it with `{}` and pass what it holds"
REFUSED: tuple[tuple[re.Pattern, str, str], ...] = tuple(
    (re.compile(pattern, re.DOTALL), name, advice)
    for pattern, name, advice in (
        (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK.format("7z x")),
        (rb"\x1f\x9d", "packed by compress (.Z)", UNPACK.format("gzip -dc")),
        (rb"\x04\x22\x4d\x18|\x02\x21\x4c\x18", "packed by lz4", UNPACK.format("lz4 -d")),
        (rb"[\x1e\x22-\x27]\xb5\x2f\xfd", "packed by a zstd from before 2016", UNPACK.format("zstd -d")),
        (rb"LZIP\x01", "packed by lzip", UNPACK.format("lzip -d")),
        (rb"\x89LZO\x00\r\n\x1a\n", "packed by lzop", UNPACK.format("lzop -d")),
        (rb"\xff\x06\x00\x00sNaPpY", "packed by Snappy", UNPACK.format("snzip -d")),
        (rb"Rar!\x1a\x07", "a RAR archive", UNPACK.format("unrar x")),
        (rb"07070[127][0-9A-Fa-f]{70}|\xc7\x71|\x71\xc7", "a cpio archive", UNPACK.format("cpio -id")),
        (rb"!<arch>\n", "an ar archive or Debian package", UNPACK.format("ar x")),
        (rb"MSCF\x00{4}", "a cabinet archive", UNPACK.format("cabextract")),
        (rb"PK\x07\x08|PK00PK", "one part of a zip of several", "join them with `zip -s 0 PART --out WHOLE.zip`"),
        (rb"%PDF-", "a PDF", "turn it into a text, for example with `pdftotext`"),
        (rb"PAR1[\x15\x19]", "a Parquet table", "write its column of text into a file"),
        (rb"ARROW1\x00\x00", "an Arrow table", "write its column of text into a file"),
        (rb"SQLite format 3\x00", "an SQLite database", "write its texts into a file"),
        (rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff", "UTF-32 text", "turn it into UTF-8 with `iconv -f UTF-32 -t UTF-8`"),
        (rb"\xff\xfe|\xfe\xff", "UTF-16 text", "turn it into UTF-8 with `iconv -f UTF-16 -t UTF-8`"),
    )
)
HTML = re.compile(rb"[\xef\xbb\xbf \t\r\n]*(<!doctype html|<html)", re.IGNORECASE)


def compression(head: bytes) -> str | None:
    """gzip, bzip2, xz, lzma or zstd; None for anything else."""
    if head.startswith(tuple(bytes([first]) + b"\x2a\x4d\x18" for first in range(0x50, 0x60))):
        head = _after_skippable_frames(head) or b"\x28\xb5\x2f\xfd"
    return next((name for name, form in COMPRESSIONS.items() if form.match(head)), None)


def _after_skippable_frames(head: bytes) -> bytes:
    while frame := SKIPPABLE.match(head):
        head = head[8 + int.from_bytes(frame[1], "little") :]
    return head


def archive(head: bytes) -> str | None:
    """zip or tar, of any age; None for anything else."""
    if ZIP.match(head):
        return "zip"
    block = head[: tarfile.BLOCKSIZE]
    if block[TAR_MAGIC_PLACE:].startswith(TAR_MAGIC):
        return "tar"
    try:  # before POSIX tars had no magic; one of nothing but its end is empty
        return "tar" if head.startswith(2 * TAR_END) or tarfile.TarInfo.frombuf(block, "utf-8", "replace") else None
    except (tarfile.HeaderError, ValueError):
        return None


def refusal(head: bytes) -> str | None:
    """What a file is that only looks like a text, and what to do; None where nothing speaks against a text."""
    if HTML.match(head):
        return (
            "is an HTML page, not the text: often the error or login page of a server, saved under the file's name. "
            "Look at it, and download the file again."
        )
    for form, name, advice in REFUSED:
        if form.match(_after_skippable_frames(head)):
            return f"is {name}, which is not read here: {advice}."
    if order := _utf16_order(head[:4096]):
        return f"is UTF-16 text, which is not read here: turn it into UTF-8 with `iconv -f UTF-16{order} -t UTF-8`."
    if inner := compression(head) or archive(head):
        return f"is packed twice: inside is {inner} again. Unpack the outer one and pass what it holds."
    return None


def _utf16_order(head: bytes) -> str | None:
    """LE or BE for a text that is mostly of the first 256 characters, in two bytes each and without a mark."""
    if len(head) < 64:
        return None
    zeros = [half.count(0) / len(half) for half in (head[::2], head[1::2])]
    if max(zeros) > 0.8 and min(zeros) < 0.02:
        return "BE" if zeros[0] > zeros[1] else "LE"
    return None
