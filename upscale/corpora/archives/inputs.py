"""What users have, as files: a folder, a tar or zip, packed or not, or a single text; told apart by content, not name.

Nothing is unpacked onto disk and everything is read once, in order, in bounded memory.
"""

from __future__ import annotations

import io
import os
import posixpath
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from upscale.corpora.archives.unpacking import (
    BUFFER_BYTES,
    UNREADABLE,
    Counted,
    Guarded,
    Progress,
    cannot_read,
    damaged,
    unpacked,
)
from upscale.errors import UserError

TAR_END = bytes(1024)
TAR_MAGIC, TAR_MAGIC_PLACE = b"ustar", 257
ZIP_BEGINNINGS = (b"PK\x03\x04", b"PK\x05\x06")
VERSION_CONTROL = b".git"
HTML_BEGINNINGS = (b"<!doctype html", b"<html")

Wanted = Callable[[bytes], bool]


@dataclass(frozen=True)
class Entry:
    """A regular file of an input; `link` names the earlier one it is a hard link to, instead of a stream."""

    name: bytes
    """Path in the folder or archive, with / and without a leading ./"""
    stream: io.BufferedReader | None
    link: bytes | None = None


def entries(path: Path, progress: Progress, wanted: Wanted = lambda name: True) -> Iterator[Entry]:
    """The regular files of a folder or an archive, or a single text; each stream is to be read before the next entry.

    Symbolic links and version control's own files are left out. Raises UserError when something is damaged, truncated,
    empty, not to be read, a web page, or an archive with paths or links that lead out of it.
    """

    def kept(name: bytes) -> bool:
        return wanted(name) and VERSION_CONTROL not in name.split(b"/")

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


def single_text(path: Path, progress: Progress) -> Iterator[io.BufferedReader]:
    """An iterator of the one text in an input; raises UserError when it holds no file or several."""
    found = None
    with closing(entries(path, progress)) as files:
        for entry in files:
            if found is not None:
                raise UserError(
                    f"{path} holds several files, among them {os.fsdecode(found)} and {os.fsdecode(entry.name)}: pass "
                    "the one that is the text"
                )
            found = entry.name
            yield _checked_text(path, entry.stream)
    if found is None:
        raise UserError(f"{path} holds no file")


def is_archive(path: Path) -> bool:
    """Whether a file is a tar, packed or not, or a zip."""
    with _open(path, lambda _: None) as stream:
        kind = _kind(stream)
        if kind == "text":
            _checked_text(path, stream)
        return kind != "text"


def _open(path: Path, progress: Progress) -> io.BufferedReader:
    try:
        return unpacked(path, progress)
    except OSError as error:
        raise cannot_read(path, error) from None


def _kind(stream: io.BufferedReader) -> str:
    head = stream.peek(BUFFER_BYTES)
    if stream.raw.packing is None and head.startswith(ZIP_BEGINNINGS):
        return "zip"
    return "tar" if head[TAR_MAGIC_PLACE:].startswith(TAR_MAGIC) else "text"


def _checked_text(path: Path, stream: io.BufferedReader) -> io.BufferedReader:
    head = stream.peek(BUFFER_BYTES)
    if not head:
        raise UserError(f"{path} is empty")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:20].lower().startswith(HTML_BEGINNINGS):
        raise UserError(
            f"{path} is an HTML page, not the text: often the error or login page of a server, saved under the file's "
            "name. Look at it, and download the file again."
        )
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
                if child.name != VERSION_CONTROL:
                    yield from _walk(root, name, progress, wanted)
            elif child.is_file(follow_symlinks=False) and wanted(name):
                content = Guarded(Counted(io.FileIO(child.path), progress), os.fsdecode(child.path), None)
                with io.BufferedReader(content) as stream:
                    yield Entry(name, stream)
    except OSError as error:
        raise cannot_read(os.fsdecode(error.filename or folder), error) from None


def _tar_entries(path: Path, stream: io.BufferedReader, wanted: Wanted) -> Iterator[Entry]:
    if stream.raw.packing is None:
        _check_tar_end(path)
    try:
        # tarfile's own buffer stays small: it copies the rest of it at every header. Ours is below it.
        with tarfile.open(fileobj=stream, mode="r|", encoding="utf-8", errors="surrogateescape") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # else every header is kept, 100 MB of them for a kernel
                name = _safe(path, member.name)
                if member.issym() or member.islnk():
                    link = _safe_link(path, name, member.linkname, member.issym())
                    if member.islnk() and wanted(name):
                        yield Entry(name, None, link)
                elif member.isreg() and wanted(name):
                    content = Guarded(tar.extractfile(member), str(path), "tar")
                    yield Entry(name, io.BufferedReader(content))
    except tarfile.TarError as error:
        raise damaged(path, error) from None


def _check_tar_end(path: Path) -> None:
    """A packed tar is checked by its packing; a plain one that was cut between two members only lacks its end mark."""
    with open(path, "rb") as file:
        file.seek(-min(len(TAR_END), path.stat().st_size), os.SEEK_END)
        if file.read() != TAR_END:
            raise damaged(path, EOFError("a tar's end mark is missing"))


def _zip_entries(path: Path, progress: Progress, wanted: Wanted) -> Iterator[Entry]:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = _safe(path, member.filename)
                if (member.external_attr >> 16) & 0o170000 == 0o120000:  # a symbolic link; its content is its target
                    _safe_link(path, name, os.fsdecode(archive.read(member)), True)
                elif not member.is_dir() and wanted(name):
                    with archive.open(member) as content:
                        yield Entry(name, io.BufferedReader(Guarded(content, str(path), "zip")))
                progress(member.compress_size)
    except UNREADABLE as error:
        raise damaged(path, error) from None


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
