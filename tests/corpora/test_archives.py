"""Archives as tools really write them, against the bytes that were put in; and files that only look like a text."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import struct
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.corpora import inputs
from tests.corpora.small import text
from upscale.corpora.archives import decompression, formats
from upscale.corpora.archives.inputs import HardLink, entries, single_text
from upscale.errors import UserError

MIB = 1 << 20


def content_of(path: Path) -> dict[str, bytes]:
    """What the files of an input hold, hard links as what they link to."""
    found: dict[str, bytes] = {}
    for entry in entries(path, lambda _: None):
        name = os.fsdecode(entry.name)
        found[name] = found[os.fsdecode(entry.target)] if isinstance(entry, HardLink) else entry.stream.read()
    return found


def only_text(path: Path) -> bytes:
    return b"".join(stream.read() for stream in single_text(path, lambda _: None))


def refused(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        only_text(path)


def run(folder: Path, *words: str) -> None:
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    subprocess.run(words, cwd=folder, check=True, capture_output=True, timeout=120)


@pytest.fixture
def tree(tmp_path) -> dict[str, bytes]:
    """Below tmp_path/tree: a file with holes, a hard link, a long name, two names that differ in case only."""
    folder = tmp_path / "tree"
    folder.mkdir()
    with open(folder / "holes.c", "wb") as file:
        file.write(b"begin\n")
        for place in (MIB, 3 * MIB, 5 * MIB):
            file.seek(place)
            file.write(b"data\n")
        file.truncate(6 * MIB)
    (folder / "xt_TCPMSS.c").write_bytes(b"upper")
    (folder / "xt_tcpmss.c").write_bytes(b"lower")
    (folder / "größe.h").write_bytes(b"umlaut")
    (folder / ("long" * 50 + ".c")).write_bytes(b"a long name")
    os.link(folder / "xt_tcpmss.c", folder / "zz_linked.c")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu", "--sparse"],
        ["--format=posix", "--sparse", "--sparse-version=0.0"],
        ["--format=posix", "--sparse", "--sparse-version=0.1"],
        ["--format=posix", "--sparse", "--sparse-version=1.0"],
        ["--format=gnu", "--xz"],
        ["--format=oldgnu", "--gzip"],
    ],
    ids=" ".join,
)
def test_gnu_tars(tmp_path, tree, options):
    """GNU tar's sparse files in each form, hard links, long and folding names."""
    run(tmp_path / "tree", "tar", *options, "-cf", "../made.tar", *sorted(tree))
    assert content_of(tmp_path / "made.tar") == tree


@pytest.mark.parametrize("form", ["v7", "ustar"])
def test_tars_from_before_posix(tmp_path, tree, form):
    """Without a magic number and with short names only; packed too."""
    names = sorted(name for name in tree if len(name) < 90)
    run(tmp_path / "tree", "tar", f"--format={form}", "-cf", "../made.tar", *names)
    expected = {name: tree[name] for name in names}
    assert content_of(tmp_path / "made.tar") == expected
    (tmp_path / "made.gz").write_bytes(gzip.compress((tmp_path / "made.tar").read_bytes()))
    assert content_of(tmp_path / "made.gz") == expected


@pytest.mark.parametrize("form", ["tar", "tar.gz", "zip"])
def test_git_archives(tmp_path, tree, form):
    """With git's global pax header, which names the commit, and a symbolic link."""
    folder = tmp_path / "tree"
    (folder / "link.c").symlink_to("xt_TCPMSS.c")
    run(folder, "git", "init", "--quiet")
    run(folder, "git", "add", ".")
    run(folder, "git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "x")
    run(folder, "git", "archive", f"--format={form}", "--prefix=linux/", "-o", "../made", "HEAD")
    assert content_of(tmp_path / "made") == {f"linux/{name}": content for name, content in tree.items()}


def test_zips_of_info_zip_and_of_macos(tmp_path, tree):
    """With its extra fields and a symbolic link; and with the files that macOS adds, which are no text."""
    (tmp_path / "tree" / "link.c").symlink_to("xt_TCPMSS.c")
    run(tmp_path / "tree", "zip", "--quiet", "--symlinks", "--recurse-paths", "../made.zip", ".")
    assert content_of(tmp_path / "made.zip") == tree
    (tmp_path / "mac.zip").write_bytes(
        inputs.zipped({"enwik8": b"text" * 99, "__MACOSX/._enwik8": b"\0\5\x16\7", "._a": b""})
    )
    assert only_text(tmp_path / "mac.zip") == b"text" * 99


def test_seekable_and_parallel_zstd(tmp_path):
    """Many frames, with a seek table in a skippable frame at the end, and with such a frame before each, as pzstd."""
    content = text(300_000)
    frames = [inputs.zstd_with_checksum(content[start : start + 50_000]) for start in range(0, 300_000, 50_000)]
    rows = b"".join(struct.pack("<II", len(frame), 50_000) for frame in frames)
    table = rows + struct.pack("<IBI", len(frames), 0, 0x8F92EAB1)
    (tmp_path / "seekable.zst").write_bytes(b"".join(frames) + struct.pack("<II", 0x184D2A5E, len(table)) + table)
    ahead = (struct.pack("<III", 0x184D2A50, 4, len(frame)) + frame for frame in frames)
    (tmp_path / "parallel.zst").write_bytes(b"".join(ahead))
    assert only_text(tmp_path / "seekable.zst") == only_text(tmp_path / "parallel.zst") == content


PACK = {
    "gzip": (gzip.compress, {}),
    "bzip2": (bz2.compress, {}),
    "xz": (lzma.compress, {}),
    "lzma": (lzma.compress, {"format": lzma.FORMAT_ALONE}),
    "zstd": (inputs.zstd_with_checksum, {}),
}


@pytest.mark.parametrize("packing", PACK)
def test_streams_in_a_row(tmp_path, packing):
    """Read, with zeros between and after them; a second one with a damaged beginning is not taken for the end."""
    content, (pack, options) = text(40_000), PACK[packing]
    streams = [pack(content[:20_000], **options), pack(content[20_000:], **options)]
    file = tmp_path / "packed"
    file.write_bytes(bytes(512).join(streams) + bytes(512))
    assert only_text(file) == content
    damage = b"damaged" + streams[1][7:]
    refused(file, streams[0] + damage, "is damaged or truncated")
    refused(file, streams[0] + streams[1][:3], "is damaged or truncated")
    assert formats.compression(streams[0]) == packing


@pytest.mark.parametrize("tool", ["xz", "lzma", "zstd", "bzip2", "gzip"])
def test_packed_by_the_tools(tmp_path, tool):
    content = text(50_000) + bytes(50_000)
    (tmp_path / "dump").write_bytes(content)
    run(tmp_path, tool, "-f", "dump")
    (packed,) = [path for path in tmp_path.iterdir() if path.name.startswith("dump.")]
    assert only_text(packed) == content


def test_a_damaged_header_inside_a_tar_is_not_its_end(tmp_path):
    """One bit of a later header, for which tarfile alone ends in silence; and a cut between two members, packed."""
    content = inputs.tar()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        place = archive.getmembers()[4].offset
    damaged = bytearray(content)
    damaged[place + 3] ^= 1
    for number, bad in enumerate([bytes(damaged), content[:place]]):
        for pack in (bytes, gzip.compress):
            (tmp_path / f"{number}").write_bytes(pack(bad))
            with pytest.raises(UserError, match="is damaged or truncated"):
                content_of(tmp_path / f"{number}")


def test_a_tar_whose_packing_is_damaged_after_its_end(tmp_path):
    """The checksum at the end of a gzip is read, though the tar has ended before it."""
    packed = bytearray(gzip.compress(inputs.tar()))
    packed[-6] ^= 1
    (tmp_path / "made.tar.gz").write_bytes(packed)
    with pytest.raises(UserError, match="is damaged or truncated .*CRC"):
        content_of(tmp_path / "made.tar.gz")


def test_tars_of_several_parts_are_refused(tmp_path):
    (tmp_path / "two.tar").write_bytes(2 * inputs.tar({"a.c": b"a"}))
    with pytest.raises(UserError, match="goes on after a tar's end mark.*tar --concatenate"):
        content_of(tmp_path / "two.tar")
    (tmp_path / "volume.tar").write_bytes(inputs.tar({}, extra=[inputs.member("big.c", b"M")]))
    with pytest.raises(UserError, match="is one volume of a tar of several.*--multi-volume"):
        content_of(tmp_path / "volume.tar")


LOOK_ALIKE = {
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(99), "is a 7z archive, .*`7z x`"),
    "Z": (b"\x1f\x9d\x90abc", r"is packed by compress \(.Z\), .*`gzip -dc`"),
    "lz4": (b"\x04\x22\x4d\x18" + bytes(99), "is packed by lz4, .*`lz4 -d`"),
    "lz4 after a skipped frame": (struct.pack("<II", 0x184D2A50, 4) + b"abcd\x04\x22\x4d\x18", "is packed by lz4"),
    "lzip": (b"LZIP\x01" + bytes(99), "is packed by lzip"),
    "rar": (b"Rar!\x1a\x07\x01\x00", "is a RAR archive"),
    "cpio": (b"070701" + b"0" * 104, "is a cpio archive"),
    "deb": (b"!<arch>\ndebian-binary", "is an ar archive or Debian package"),
    "pdf": (b"%PDF-1.7\n", "is a PDF, .*pdftotext"),
    "parquet": (b"PAR1\x15\x04", "is a Parquet table"),
    "part of a zip": (b"PK\x07\x08PK\x03\x04", "is one part of a zip of several"),
    "UTF-16 with a mark": ("\ufeffSchöne Texte".encode("utf-16-le"), "is UTF-16 text, .*iconv -f UTF-16 -t UTF-8"),
    "UTF-16 without": (("Schöne Texte\n" * 9).encode("utf-16-be"), "is UTF-16 text, .*iconv -f UTF-16BE -t UTF-8"),
    "UTF-32": ("\ufeffText".encode("utf-32-le"), "is UTF-32 text, .*iconv -f UTF-32 -t UTF-8"),
    "zip in a zip": (inputs.zipped({"a.zip": inputs.zipped({"a": b"text"})}), "is packed twice: inside is zip again"),
    "zip in a gzip": (gzip.compress(inputs.zipped({"a": b"text"})), "is packed twice: inside is zip again"),
    "gzip in a gzip": (gzip.compress(gzip.compress(b"text")), "is packed twice: inside is gzip again"),
    "tar in a zip": (inputs.zipped({"a.tar": inputs.tar({"a": b"text"})}), "is packed twice: inside is tar again"),
}


@pytest.mark.parametrize("form", LOOK_ALIKE)
def test_what_only_looks_like_a_text_is_refused_by_name(tmp_path, form):
    """With what to do about it."""
    refused(tmp_path / "dump", *LOOK_ALIKE[form])


def test_lz4_of_the_tool_is_refused_by_name(tmp_path):
    (tmp_path / "dump").write_bytes(text(1000))
    run(tmp_path, "lz4", "-q", "dump", "dump.lz4")
    refused(tmp_path / "copy", (tmp_path / "dump.lz4").read_bytes(), "is packed by lz4")


def test_zips_that_are_not_read_here(tmp_path):
    """Encrypted, and of a method that Python does not know: named as such, not as damaged."""
    whole = inputs.zipped({"dump": b"text"})
    encrypted, other = bytearray(whole), bytearray(whole)
    for bad, places, value in (
        (encrypted, (6, whole.index(b"PK\1\2") + 8), 1),
        (other, (8, whole.index(b"PK\1\2") + 10), 97),
    ):
        for place in places:
            bad[place] = value
    refused(tmp_path / "encrypted.zip", bytes(encrypted), "is encrypted: 'dump' needs a password")
    refused(tmp_path / "other.zip", bytes(other), "is packed in a way that is not read here")


def sparse_tar(size: int) -> bytes:
    header = tarfile.TarInfo("sparse.c")
    header.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(size), "GNU.sparse.name": "sparse.c"}
    return header.tobuf(tarfile.PAX_FORMAT) + bytes(1024)


BOMBS = {
    "gzip": lambda: gzip.compress(bytes(8 * MIB)),
    "xz": lambda: lzma.compress(bytes(8 * MIB), preset=0),
    "zip of many files": lambda: inputs.zipped({f"{number}.c": bytes(MIB // 2) for number in range(16)}),
    "sparse tar": lambda: sparse_tar(1 << 50),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_refused(tmp_path, monkeypatch, kind):
    """Small files that give over a hundred times their size; the limit below which all is allowed is 1 MiB here."""
    monkeypatch.setattr(decompression, "ALWAYS_ALLOWED_BYTES", MIB)
    (tmp_path / "bomb").write_bytes(BOMBS[kind]())
    with pytest.raises(UserError, match="over 100 times its size: it is no text"):
        for entry in entries(tmp_path / "bomb", lambda _: None):
            while entry.stream.read(MIB):
                pass


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_name_as_long_as_a_file_is_not_read_into_memory(tmp_path, kind):
    header = tarfile.TarInfo("long")
    header.type, header.size = kind, 1 << 40
    (tmp_path / "made.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(5 * MIB))
    with pytest.raises(UserError, match="says that its 1,099,511,627,776 bytes are a name or a record"):
        content_of(tmp_path / "made.tar")


def test_a_member_that_is_said_to_be_endless(tmp_path):
    """A size of 2^90 bytes of a file that is not wanted: skipping it would take tarfile for ever."""
    header = bytearray(tarfile.TarInfo("logo.ppm").tobuf())
    header[124:136] = b"\x80" + b"\x04".ljust(11, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "made.tar").write_bytes(bytes(header) + bytes(5 * 512))
    with pytest.raises(UserError, match="is damaged or truncated .it ends inside a member"):
        list(entries(tmp_path / "made.tar", lambda _: None, lambda name: name.endswith(b".c")))


def test_a_packed_text_that_asks_for_more_memory_than_there_is():
    """Found by fuzzing: a damaged header of xz asks for a dictionary of up to 3 GiB, which a machine may not have."""

    class Asks:
        def read(self, _count: int) -> bytes:
            raise MemoryError

    with pytest.raises(UserError, match="a.xz needs more memory to be unpacked than there is"):
        decompression.Guarded(Asks(), "a.xz", "xz").read(1)


def test_a_link_in_a_zip_is_not_read_as_a_whole(tmp_path):
    """A symbolic link whose target would be 8 MiB long."""
    link = zipfile.ZipInfo("a.c")
    link.external_attr, link.compress_type = 0o120777 << 16, zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(tmp_path / "made.zip", "w") as archive:
        archive.writestr(link, b"a" * 8 * MIB)
        archive.writestr("b.c", b"b")
    assert content_of(tmp_path / "made.zip") == {"b.c": b"b"}


def test_a_tar_that_begins_with_a_link_is_no_single_text(tmp_path):
    (tmp_path / "made.tar").write_bytes(inputs.member("a", tarfile.LNKTYPE, "b").tobuf() + bytes(1024))
    with pytest.raises(UserError, match="holds several files, among them b and a"):
        only_text(tmp_path / "made.tar")
