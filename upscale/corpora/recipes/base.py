"""What every corpus is made of: what is known of it, what may be asked of it, and how its text is read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from pydantic.fields import FieldInfo

from upscale.corpora.archives.decompression import Progress
from upscale.corpora.archives.inputs import single_text
from upscale.corpora.work.spooling import Spool, chunks_of, spool_chunks
from upscale.settings import Count, Section


@dataclass(frozen=True)
class Known:
    """A file whose content is known by its name, or by the address it came from."""

    pattern: str
    """What the whole of the name or address must match."""
    algorithm: str
    digest: str
    of_text: bool
    """The digest is of the text, so that it holds for every compression; else of the file as it is downloaded."""


class Recipe(Section):
    """How one corpus is made. Every subclass in this room with a field `kind` is one.

    Its class attributes are what is known of the corpus. Its fields are what was asked of it: `take`, and any that a
    subclass adds. Such a field is an option of `upscale prepare` for this corpus: a Literal of words, a text or a
    number, with a default, described by the string below it, and recorded in the index.
    """

    definition: ClassVar[str]
    address: ClassVar[str | None]
    """Where it is to be had; None: the user must say."""
    accepts: ClassVar[str]
    """What `--from` may be."""
    licence: ClassVar[str]
    total: ClassVar[int]
    """Published bytes of the text; `train` and `validation` are those of two splits, and the test split is the rest."""
    train: ClassVar[int]
    validation: ClassVar[int]
    tolerance: ClassVar[float] = 0
    """The published sizes apply to texts whose size differs from `total` by at most this share."""
    known: ClassVar[tuple[Known, ...]] = ()
    of_one_file: ClassVar[bool] = True
    """The text is one file; else it is made of the files of a folder or an archive."""

    if TYPE_CHECKING:
        kind: str

    take: Count | None = Field(default=None, alias="bytes")
    """Bytes of text to take; None: all."""

    def spool(self, path: Path, file: Path, progress: Progress, processes: int) -> tuple[Spool, int | None]:
        """The text of an input, unpacked into `file`, and of how many files it is (None: of one).

        Raises UserError when the input is not what it should be.
        """
        chunks = (chunk for stream in single_text(path, progress) for chunk in chunks_of(stream))
        return spool_chunks(chunks, file, self.take), None

    def options(self) -> dict[str, Any]:
        """What was asked that changes the text, as the index records it."""
        return self.model_dump(by_alias=True, exclude={"kind"})

    @classmethod
    def own_options(cls) -> dict[str, FieldInfo]:
        """The fields that only this corpus has."""
        return {name: field for name, field in cls.model_fields.items() if name not in ("kind", "take")}

    @classmethod
    def sizes(cls, total: int) -> dict[str, int]:
        """Bytes of the three splits of a text: as published, or in proportion where the text is another one."""
        train, validation = cls.train, cls.validation
        if abs(total - cls.total) > cls.tolerance * cls.total:
            train, validation = (total * part // cls.total for part in (train, validation))
        return {"train": train, "validation": validation, "test": total - train - validation}

    @classmethod
    def expected(cls, name: str, address: str | None) -> Known | None:
        """What is known of a file of this name, or from this address."""
        names = [given for given in (name, address) if given]
        return next((known for known in cls.known if any(re.fullmatch(known.pattern, given) for given in names)), None)
