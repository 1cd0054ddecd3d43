"""The documents of an input, one after the other in its own order, in bounded memory.

A file is told apart by its content: Parquet, Arrow, a tar or zip (webdataset's shards among them), packed or not, else
a text. Only that a text is JSON lines is said by its name: *.jsonl or *.ndjson, packed or not. In an archive NAME.json
is one JSON object, and any other member is a document.
"""

from __future__ import annotations

import fnmatch
import io
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from upscale.corpora.archives import formats
from upscale.corpora.archives.decompression import BUFFER_BYTES, Progress
from upscale.corpora.archives.inputs import Entry, HardLink, entries, is_archive
from upscale.corpora.documents import tables
from upscale.corpora.shards import index
from upscale.corpora.work.spooling import chunks_of
from upscale.errors import UserError

PACKED = (".gz", ".bz2", ".xz", ".lzma", ".zst")
LINES, ARCHIVES, TABLES = (".jsonl", ".ndjson"), (".tar", ".tgz", ".zip"), (".parquet", ".arrow")
ABOUT = (
    *("README.md", "LICENSE", "LICENSE.txt", "LICENSE.md", ".gitattributes"),
    *("dataset_info.json", "dataset_dict.json", "state.json"),
)
"""Files that stand beside the tables and shards of a data set and tell of them."""


@dataclass(frozen=True)
class Document:
    """A name for messages, and the content in pieces, to be read before the next document."""

    where: str
    chunks: Iterable[bytes]


@dataclass(frozen=True)
class Reader:
    """What is a document: the `field` of tables, `only` names that match a pattern, `cut` at lines or blank lines."""

    field: str = "text"
    only: str | None = None
    cut: str = "whole"

    def documents(self, path: Path, progress: Progress) -> Iterator[Document]:
        """The documents of a file, a folder or an archive.

        Raises UserError, of tables before the first document: no such field, no rows; and where a container holds no
        document, something is damaged, or a folder mixes tables or archives with other files.
        """
        files = self._files(path) if path.is_dir() else [path]
        kinds = {file: tables.kind_of(file) for file in files}
        for file, kind in kinds.items():
            if kind:
                tables.check_table(file, kind, self.field)
        for file, kind in kinds.items():
            count = 0
            found = self._of_table(file, kind, progress) if kind else self._of_file(file, progress)
            with closing(found):
                for document in found:
                    count += 1
                    yield document
            if not count and (kind or is_container(file.name)):
                raise UserError(f"{file} holds no document{self._of_pattern()}: leave it out, or download it again")

    def _files(self, folder: Path) -> list[Path]:
        """The files of a folder that are read, in sorted order; raises UserError where there are none, or of two
        sorts."""
        if (folder / index.INDEX).is_file() and next(folder.glob("train-*.tar"), None):
            raise UserError(f"{folder} is a prepared corpus already: train on it as it is")

        def is_wanted(name: bytes) -> bool:
            return _unpacked(os.fsdecode(name)).endswith(ARCHIVES) or self.wants(name)

        with closing(entries(folder, lambda count: None, is_wanted)) as found:
            files = [folder / os.fsdecode(entry.name) for entry in found]
        contained = [file for file in files if is_container(file.name)]
        if contained:
            others = [file for file in files if file not in set(contained) and file.name not in ABOUT]
            if others:
                raise UserError(
                    f"{folder} holds tables or archives, as {contained[0].name}, and other files, as {others[0].name}: "
                    f"choose with --only, such as --only '*{contained[0].suffix}'"
                )
            files = contained
        empty = [file for file in contained if not file.stat().st_size]
        if empty:
            raise UserError(f"{empty[0]} is empty: leave it out, or download it again")
        files = [file for file in files if file.stat().st_size]
        if not files:
            raise UserError(f"{folder} holds no document{self._of_pattern()}")
        return files

    def wants(self, name: bytes) -> bool:
        """Whether a file of this path is read."""
        text = os.fsdecode(name)
        return self.only is None or any(
            fnmatch.fnmatchcase(each, self.only) for each in (text, text.rpartition("/")[2])
        )

    def _of_pattern(self) -> str:
        return f" whose name is like {self.only}" if self.only else ""

    def _of_table(self, file: Path, kind: str, progress: Progress) -> Generator[Document, None, None]:
        for number, text in tables.texts(file, kind, self.field, progress):
            yield Document(f"{file}, row {number}", [text])

    def _of_file(self, file: Path, progress: Progress) -> Generator[Document, None, None]:
        in_archive = is_archive(file)
        wanted: Callable[[bytes], bool] = self.wants if in_archive else lambda name: True
        with closing(entries(file, progress, wanted)) as found:
            for entry in found:
                if not isinstance(entry, HardLink):  # which is a second name of a document
                    where = f"{file}, {os.fsdecode(entry.name)}" if in_archive else str(file)
                    yield from self._of_entry(entry, where, in_archive)

    def _of_entry(self, entry: Entry, where: str, in_archive: bool) -> Iterator[Document]:
        name, head = os.fsdecode(entry.name), entry.stream.peek(BUFFER_BYTES)
        if problem := formats.refusal(head):
            raise UserError(f"{where} {problem}")
        if _unpacked(name).endswith(LINES):
            for number, line in tables.lines(entry.stream, where):
                if line.strip():
                    place = f"{where}, line {number}"
                    yield Document(place, [tables.json_field(line, self.field, place)])
        elif in_archive and name.endswith(".json"):
            yield Document(where, [tables.json_field(entry.stream.read(), self.field, where)])
        elif self.cut == "whole":
            if head:
                yield Document(where, chunks_of(entry.stream))
        else:
            yield from _cut(entry.stream, self.cut, where)


def is_container(name: str) -> bool:
    """Whether a name says that the file holds many documents."""
    return _unpacked(name).endswith((*LINES, *ARCHIVES, *TABLES))


def _unpacked(name: str) -> str:
    return next((name.removesuffix(suffix) for suffix in PACKED if name.endswith(suffix)), name)


def _cut(stream: io.BufferedIOBase, cut: str, where: str) -> Iterator[Document]:
    """A text's lines, or what stands between its blank lines, without the ends of line around them."""
    kept: list[bytes] = []
    first = 1
    for number, line in tables.lines(stream, where):
        if cut == "line" or not line.strip():
            if content := b"".join([*kept, line] if cut == "line" else kept).rstrip(b"\r\n"):
                yield Document(f"{where}, line {first}", [content])
            kept, first = [], number + 1
        else:
            kept.append(line)
    if content := b"".join(kept).rstrip(b"\r\n"):
        yield Document(f"{where}, line {first}", [content])
