"""text: any text, of one document or many."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from upscale.corpora.archives.decompression import Progress
from upscale.corpora.documents.reading import Reader
from upscale.corpora.documents.spooling import spool_documents
from upscale.corpora.documents.tokens import Tokenizer, tokenized
from upscale.corpora.recipes.base import Recipe
from upscale.corpora.work.spooling import Spool
from upscale.errors import UserError

SEPARATORS = {"zero": b"\0", "blank": b"\n\n", "none": b""}


class Text(Recipe):
    definition = "any text: documents, each in the split that a hash of its content names"
    address = None
    accepts = (
        "a file, folder or archive of texts, JSON lines, Parquet, Arrow, webdataset shards or a Hugging Face data set"
    )
    licence = "that of the text, which is not known here"
    total = 1000  # of one document: shares
    train = 900
    validation = 50
    of_one_file = False

    kind: Literal["text"] = "text"
    field: Annotated[str, Field(min_length=1)] = "text"
    """the field of JSON lines and tables that is the document (default text)"""
    only: Annotated[str | None, Field(min_length=1)] = None
    """read only the files, in folders and archives, whose name is like this: '*.txt'"""
    documents: Literal["whole", "blank", "line"] = "whole"
    """a file of text is one document (default), or is cut at blank lines, or at every line"""
    separator: Literal["zero", "blank", "none"] = "zero"
    """after each document a zero byte (default), a blank line, or nothing"""
    duplicates: Literal["dropped", "kept"] = "dropped"
    """documents of equal content once (default), or as often as they come"""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """share of the documents held out, half for validation and half for test (default 0.1)"""
    encoding: Literal["utf-8", "any"] = "utf-8"
    """refuse documents that are not UTF-8 (default), or take all bytes as they are"""

    tokenizer: Annotated[str | None, Field(min_length=1)] = None
    """a tokenizer.json of the package tokenizers: the corpus is of its tokens instead of bytes"""

    def spool(self, path: Path, file: Path, progress: Progress, processes: int) -> tuple[Spool, None]:
        separator = SEPARATORS[self.separator]
        if self.tokenizer and self.encoding == "any":
            raise UserError("--encoding any with --tokenizer: a tokenizer reads UTF-8 only; leave one of them out")
        tokenizer = Tokenizer(Path(self.tokenizer), separator == b"\0") if self.tokenizer else None
        reader = Reader(self.field, self.only, self.documents)
        spool = spool_documents(
            reader.documents(path, progress),
            file,
            separator=separator,
            unique=self.duplicates == "dropped",
            held_out=self.held_out,
            take=self.take,
            utf8=self.encoding == "utf-8",
        )
        if not len(spool):
            raise UserError(f"{path} holds no document with a text; allowed: {self.accepts}")
        if spool.splits and not all(spool.splits.values()):
            raise UserError(
                f"{path} has {spool.about['documents']:,} documents, too few for three splits by hash: {spool.splits}. "
                "Give more, cut them with --documents blank or line, or raise --held-out."
            )
        if tokenizer:
            spool = tokenized(spool, tokenizer, separator, file.with_name("tokens"))
        return spool, None
