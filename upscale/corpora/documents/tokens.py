"""A text of documents as tokens above bytes, by a tokenizer file of the package tokenizers."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from upscale.corpora.work.spooling import Spool
from upscale.errors import UserError
from upscale.sources.tokens import LARGEST_VOCABULARY

END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "[SEP]")
"""What tokenizers call the token that ends a document; the first that one has is taken."""
TOKEN_BYTES = 2
BATCH_DOCUMENTS = 256


class Tokenizer:
    """A tokenizer file, checked; raises UserError where it cannot be used."""

    def __init__(self, file: Path, ends_documents: bool) -> None:
        try:
            from tokenizers import Tokenizer as Loaded
        except ImportError:
            raise UserError("--tokenizer needs the package tokenizers: pip install tokenizers") from None
        try:
            content = file.read_bytes()
            self.loaded: Any = Loaded.from_buffer(content)
        except OSError as error:
            raise UserError(f"--tokenizer {file} cannot be read: {error.strerror}") from None
        except Exception as error:  # the package raises nothing more particular
            raise UserError(
                f"--tokenizer {file} is no file of the package tokenizers (tokenizer.json): {error}"
            ) from None
        self.about = {"tokenizer": file.name, "tokenizer_sha256": hashlib.sha256(content).hexdigest()}
        known = self.loaded.get_vocab(with_added_tokens=True)
        self.vocabulary = max(known.values(), default=0) + 1
        if self.vocabulary > LARGEST_VOCABULARY:
            raise UserError(
                f"--tokenizer {file} has {self.vocabulary:,} tokens; rows hold at most {LARGEST_VOCABULARY:,}: train a "
                "smaller one"
            )
        self.end = next((known[name] for name in END_TOKENS if name in known), None)
        if ends_documents and self.end is None:
            raise UserError(
                f"--tokenizer {file} has no token that ends a document ({', '.join(END_TOKENS)}): give --separator "
                "blank or none"
            )

    def ids(self, texts: list[str]) -> list[list[int]]:
        return [each.ids for each in self.loaded.encode_batch(texts, add_special_tokens=False)]


def tokenized(spool: Spool, tokenizer: Tokenizer, separator: bytes, file: Path) -> Spool:
    """The documents of a spool as int16 tokens in little-endian order, in a file of their own.

    Each document is a chunk of the spool and ends with the separator; a zero byte becomes the tokenizer's end token,
    anything else is text. `about` gets the bytes of text of each split without zero bytes, for bits per byte.
    """
    if not spool.splits:
        raise UserError("the text is one document, which is not tokenized whole: cut it with --documents blank or line")
    lengths, sizes, of_text = array("q"), dict.fromkeys(spool.splits, 0), dict.fromkeys(spool.splits, 0)
    ends = np.cumsum(list(spool.splits.values()))
    names = list(spool.splits)
    read = 0
    with open(file, "wb") as out:
        chunks = _chunks(spool)
        while batch := list(islice(chunks, BATCH_DOCUMENTS)):
            texts = [chunk.removesuffix(b"\0") if separator == b"\0" else chunk for chunk in batch]
            for chunk, text, ids in zip(batch, texts, tokenizer.ids([text.decode() for text in texts]), strict=True):
                ended = [*ids, tokenizer.end] if separator == b"\0" else ids
                name = names[int(np.searchsorted(ends, read, side="right"))]
                lengths.append(out.write(np.array(ended, "<i2").tobytes()))
                sizes[name] += lengths[-1]
                of_text[name] += len(text)
                read += len(chunk)
    offsets = array("q", (int(each) for each in np.cumsum([0, *lengths])[:-1]))
    about = {**spool.about, **tokenizer.about, "text_bytes": of_text}
    form = {"token_bytes": TOKEN_BYTES, "vocabulary": tokenizer.vocabulary}
    return Spool(file, offsets, lengths, splits=sizes, about=about, form=form)


def _chunks(spool: Spool) -> Iterator[bytes]:
    """The spool's chunks, in the text's order."""
    with open(spool.file, "rb") as opened:
        for offset, length in zip(spool.offsets, spool.lengths, strict=True):
            opened.seek(offset)
            yield opened.read(length)
