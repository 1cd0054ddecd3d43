"""What users have, as files: a folder, a tar or zip, packed or not, or a single text; told apart by content, not name.

Nothing is unpacked onto disk and everything is read once, in order, in bounded memory.
"""

from __future__ import annotations

import io
import os
import posixpath
import tarfile
import zipfile
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from upscale.corpora.archives import formats
from upscale.corpora.archives.decompression import (
    BUFFER_BYTES,
    UNREADABLE,
    Allowance,
    Counted,
    Guarded,
    Progress,
    cannot_read,
    damaged,
    decompressed,
)
from upscale.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Self

LEFT_OUT = (b".git", b"__MACOSX")
"""Version control's own files, and what macOS writes beside the files themselves into its zips."""
MACOS_PREFIX = b"._"
LONG_HEADER_BYTES = 1 << 20
"""The longest names and pax records that are read; tarfile holds a whole record in memory."""
LINK_BYTES = 4096
ZIP_UTF8 = 0x800
TAR_VOLUME = b"M"
PAX_TYPES = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)

Wanted = Callable[[bytes], bool]


@dataclass(frozen=True)
class Entry:
    """A regular file of an input."""

    name: bytes
    """Path in the folder or archive, with / and without a leading ./"""
    stream: io.BufferedReader[Guarded]


@dataclass(frozen=True)
class HardLink:
    """A second name of an earlier file of a tar."""

    name: bytes
    target: bytes


def entries(
    path: Path, progress: Progress, wanted: Wanted = lambda name: True
) -> Generator[Entry | HardLink, None, None]:
    """The regular files of a folder or an archive, or a single text; each stream is to be read before the next entry.

    Symbolic links, LEFT_OUT and `._*` are left out. Files whose names differ in case only are two. Raises UserError
    when something is damaged, truncated, empty, not to be read, no text, or an archive with paths or links that lead
    out of it.
    """

    def kept(name: bytes) -> bool:
        parts = name.split(b"/")
        return wanted(name) and not parts[-1].startswith(MACOS_PREFIX) and not any(part in LEFT_OUT for part in parts)

    if path.is_dir():
        yield from _walk(os.fsencode(path), b"", progress, kept)
        return
    with _open(path, progress) as stream:
        kind = _kind(stream)
        if kind == "zip":
            yield from _zip_entries(path, progress, kept)
        elif kind == "tar":
            yield from _tar_entries(path, stream, kept)
        else:
            yield Entry(os.fsencode(path.name), _checked_text(path, stream))


def single_text(path: Path, progress: Progress) -> Iterator[io.BufferedReader[Guarded]]:
    """An iterator of the one text in an input; raises UserError when it holds no file or several."""
    names: list[bytes] = []
    with closing(entries(path, progress)) as files:
        for entry in files:
            names += [entry.target, entry.name] if isinstance(entry, HardLink) else [entry.name]
            if isinstance(entry, HardLink) or len(names) > 1:
                raise UserError(
                    f"{path} holds several files, among them {os.fsdecode(names[0])} and "
                    f"{os.fsdecode(entry.name)}: pass the one that is the text"
                )
            yield _checked_text(path, entry.stream)
    if not names:
        raise UserError(f"{path} holds no file")


def is_archive(path: Path) -> bool:
    """Whether a file is a tar, packed or not, or a zip."""
    with _open(path, lambda _: None) as stream:
        kind = _kind(stream)
        if kind == "text":
            _checked_text(path, stream)
        return kind != "text"


def _open(path: Path, progress: Progress) -> io.BufferedReader[Guarded]:
    try:
        return decompressed(path, progress)
    except OSError as error:
        raise cannot_read(path, error) from None


def only_compressed_file(path: Path) -> str | None:
    """The name of an archive's one file, if that is packed or an archive itself."""
    names, compressed = [], False
    with closing(entries(path, lambda _: None)) as files:
        for entry in files:
            names.append(os.fsdecode(entry.name))
            if len(names) > 1 or isinstance(entry, HardLink):
                return None
            head = entry.stream.peek(BUFFER_BYTES)
            compressed = bool(formats.compression(head) or formats.archive(head))
    return names[0] if compressed else None


def _kind(stream: io.BufferedReader[Guarded]) -> str:
    found = formats.archive(stream.peek(BUFFER_BYTES))
    return "text" if found is None or (found == "zip" and stream.raw.compression) else found


def _checked_text(path: Path, stream: io.BufferedReader[Guarded]) -> io.BufferedReader[Guarded]:
    head = stream.peek(BUFFER_BYTES)
    if not head:
        raise UserError(f"{path} is empty")
    if problem := formats.refusal(head):
        raise UserError(f"{path} {problem}")
    return stream


def _walk(root: bytes, inside: bytes, progress: Progress, wanted: Wanted) -> Iterator[Entry]:
    """A folder's files in sorted order, files and folders together."""
    folder = os.path.join(root, inside)
    try:
        with os.scandir(folder) as found:
            children = sorted(found, key=lambda child: child.name)
        for child in children:
            name = posixpath.join(inside, child.name)
            if child.is_dir(follow_symlinks=False):
                if child.name not in LEFT_OUT:
                    yield from _walk(root, name, progress, wanted)
            elif child.is_file(follow_symlinks=False) and wanted(name):
                content = Guarded(Counted(io.FileIO(child.path), progress), os.fsdecode(child.path), None)
                with io.BufferedReader(content) as stream:
                    yield Entry(name, stream)
    except OSError as error:
        raise cannot_read(os.fsdecode(error.filename or folder), error) from None


class _UntilItsEnd(io.BufferedIOBase):
    """Reads a stream for tarfile, which would go on reading nothing for as long as the size in a header says."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self.stream, self.empty_reads = stream, 0

    def read(self, size: int | None = -1, /) -> bytes:
        content = self.stream.read(size)
        self.empty_reads = 0 if content else self.empty_reads + 1
        if self.empty_reads > 2:
            raise EOFError("it ends inside a member")
        return content


class _Header(tarfile.TarInfo):
    """A tar's header; where tarfile would take a damaged or missing one for the end, and end in silence, it raises."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf == formats.TAR_END:
                raise
            raise tarfile.ReadError(f"{error} where a tar's header or end mark should be") from None
        if header.size < 0 or (header.size > LONG_HEADER_BYTES and not _is_member(header)):
            raise tarfile.ReadError(f"a header says that its {header.size:,} bytes are a name or a record")
        return header


class _Tar(tarfile.TarFile):
    tarinfo = _Header
    members: list[tarfile.TarInfo]  # the headers so far


def _is_member(header: tarfile.TarInfo) -> bool:
    return header.type not in (*tarfile.GNU_TYPES, *PAX_TYPES) or header.type == tarfile.GNUTYPE_SPARSE


def _tar_entries(path: Path, stream: io.BufferedIOBase, wanted: Wanted) -> Iterator[Entry | HardLink]:
    allowance = Allowance(path)  # sparse files give more than the tar holds
    try:
        # tarfile's own buffer stays small: it copies the rest of it at every header. Ours is below it.
        with _Tar.open(fileobj=_UntilItsEnd(stream), mode="r|", encoding="utf-8", errors="surrogateescape") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # else every header is kept, 100 MB of them for a kernel
                name = _safe(path, member.name)
                if member.type == TAR_VOLUME:
                    raise UserError(
                        f"{path} is one volume of a tar of several: unpack them together with `tar --multi-volume` and "
                        "pass the folder"
                    )
                if member.issym() or member.islnk():
                    link = _safe_link(path, name, member.linkname, member.issym())
                    if member.islnk() and wanted(name):
                        yield HardLink(name, link)
                elif member.isreg() and wanted(name):
                    content = Guarded(tar.extractfile(member), str(path), "tar", allowance)
                    yield Entry(name, io.BufferedReader(content))
            _check_nothing_follows(path, stream)
    except (*UNREADABLE, RecursionError) as error:
        raise damaged(path, error) from None


def _check_nothing_follows(path: Path, stream: io.BufferedIOBase) -> None:
    """Read to the end: only then has a decompressor checked its sums. Tars are padded with zeros."""
    while block := stream.read(BUFFER_BYTES):
        if block.count(0) < len(block):
            raise UserError(
                f"{path} goes on after a tar's end mark, as tars joined by `cat` do: pass them one at a time, or join "
                "them with `tar --concatenate`"
            )


def _zip_entries(path: Path, progress: Progress, wanted: Wanted) -> Iterator[Entry]:
    allowance = Allowance(path)
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = _safe(path, _zip_name(member))
                symbolic = (member.external_attr >> 16) & 0o170000 == 0o120000
                if symbolic or (not member.is_dir() and wanted(name)):
                    with _opened(path, archive, member) as content:
                        if symbolic:  # its content is its target
                            _safe_link(path, name, os.fsdecode(content.read(LINK_BYTES)), True)
                        else:
                            yield Entry(name, io.BufferedReader(Guarded(content, str(path), "zip", allowance)))
                progress(member.compress_size)
    except UNREADABLE as error:
        raise damaged(path, error) from None


def _zip_name(member: zipfile.ZipInfo) -> str:
    """A member's path. Most programs write it in UTF-8 without saying so, which zipfile takes for code page 437."""
    try:
        return member.filename if member.flag_bits & ZIP_UTF8 else member.filename.encode("cp437").decode()
    except UnicodeError:
        return member.filename


def _opened(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    advice = "Unpack it yourself and pass the folder or the text."
    if member.flag_bits & 1:
        raise UserError(f"{path} is encrypted: {member.filename!r} needs a password. {advice}")
    try:
        return archive.open(member)
    except NotImplementedError as error:
        raise UserError(f"{path} is packed in a way that is not read here ({error}). {advice}") from None


def _safe(path: Path, name: str) -> bytes:
    """The plain form of a member's path; raises UserError when it leads out of the archive."""
    parts = name.encode("utf-8", "surrogateescape").split(b"/")
    if name.startswith("/") or b".." in parts:
        raise _leads_out(path, f"the path {name!r}")
    return b"/".join(part for part in parts if part not in (b"", b"."))


def _safe_link(path: Path, name: bytes, target: str, symbolic: bool) -> bytes:
    """The plain form of what a link points to; a symbolic one is relative to its folder, a hard one to the archive."""
    raw = target.encode("utf-8", "surrogateescape")
    inside = posixpath.normpath(posixpath.join(posixpath.dirname(name) if symbolic else b"", raw))
    if inside.startswith(b"/") or inside.split(b"/")[0] == b"..":
        raise _leads_out(path, f"the link {os.fsdecode(name)!r} to {target!r}")
    return inside


def _leads_out(path: Path, what: str) -> UserError:
    return UserError(f"{path} is refused: {what} leads out of the archive. Get the archive from its source again.")
