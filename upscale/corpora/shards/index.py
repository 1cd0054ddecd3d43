"""The form of a prepared corpus on disk: tar shards of numbered pieces, and an index.json that describes all of them.

A split is one string of bytes. It is cut into pieces of `piece_bytes`, and every `shard_pieces` pieces are one tar
shard, each piece a webdataset sample `train-00000000.bin`. Since all headers are one tar block of 512 bytes and all
pieces but a split's last are equally long, the place of any byte in its shard is arithmetic, and a shard is read as it
is: nothing is unpacked. The index is written last, so a folder without one was never completed.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from upscale.errors import UserError
from upscale.files import checked_json, file_digest, is_plain_name, parse_checked_json, write_atomically, wrong_form

FORMAT, HASH = "upscale-corpus-1", "sha256"
INDEX = "index.json"
WORK = {"prepare": ".prepare", "generate": ".generate"}
"""Folder inside a corpus in which each command that writes one works; it is gone when the corpus is complete."""

SPLITS = ("train", "validation", "test")
BLOCK = 512
"""Bytes of a tar block, to which members are padded, and of the one header of each member."""
PIECE_BYTES = 64 * 1024
SHARD_PIECES = 256
HASHING_THREADS = 4


@dataclass(frozen=True)
class Shard:
    """One tar file: its name in the folder, its size and SHA-256, and how many bytes of text are in it."""

    file: str
    bytes: int
    text_bytes: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """What index.json says."""

    corpus: str
    """The name of its recipe."""
    piece_bytes: int
    shard_pieces: int
    splits: dict[str, list[Shard]]
    """The shards of each split, in order."""
    options: dict
    """What was asked of `upscale prepare` or `upscale generate` that changes the text."""
    licence: str
    provenance: dict
    """What the text was made from."""
    token_bytes: Literal[1, 2] = 1
    """Bytes of a token: 1, or 2 for int16 in little-endian order."""
    vocabulary: int = 256
    """Tokens are below this."""
    row_tokens: int | None = None
    """Tokens of a row, where the text is rows that sources wrote, one after the other; None: a text."""

    def split_bytes(self, split: str) -> int:
        return sum(shard.text_bytes for shard in self.splits[split])

    def write(self, folder: Path) -> None:
        """Raises OSError and then leaves no index."""
        content = asdict(self)
        for name in ("token_bytes", "vocabulary", "row_tokens"):  # a text of bytes has the index that it always had
            if content[name] == getattr(Index, name):
                del content[name]
        content["bytes"] = {split: self.split_bytes(split) for split in self.splits}
        write_atomically(folder / INDEX, checked_json(FORMAT, content, HASH, indent=1) + b"\n")


def read(folder: Path) -> Index:
    """The index of a prepared corpus, whose every byte of text has a place in a file of the folder.

    Raises UserError when it is missing, damaged, of another format or contradicts itself.
    """
    file = folder / INDEX
    try:
        content = parse_checked_json(file.read_bytes(), FORMAT, HASH)
        fields = {name: content[name] for name in Index.__dataclass_fields__ if name in content}
        found = TypeAdapter(Index).validate_json(json.dumps(fields), strict=True)
    except (FileNotFoundError, NotADirectoryError):
        unfinished = next((verb for verb, work in WORK.items() if (folder / work).is_dir()), None)
        state = f"its `upscale {unfinished}` has not finished" if unfinished else f"it has no {INDEX}"
        state = state if folder.exists() else "there is no such folder"
        raise UserError(
            f"{folder} is not a prepared corpus: {state}. Make one with `upscale prepare` or `upscale generate`."
        ) from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error}. Prepare the corpus again.") from None
    except ValidationError as error:  # a ValueError too
        raise UserError(f"{file} {wrong_form(error)}. Prepare the corpus again.") from None
    except ValueError as error:
        raise UserError(f"{file} {error}. Prepare the corpus again.") from None
    if problem := _contradiction(found):
        raise UserError(f"{file} contradicts itself: {problem}. Prepare the corpus again.")
    return found


def _contradiction(found: Index) -> str | None:
    """What is wrong with an index: a shard outside of its folder, or places that would not be where arithmetic says."""
    if found.piece_bytes < 1 or found.shard_pieces < 1:
        return f"piece_bytes {found.piece_bytes}, shard_pieces {found.shard_pieces}"
    unit = found.token_bytes * (1 if found.row_tokens is None else found.row_tokens)
    if not 1 <= found.vocabulary <= 1 << (8 if found.token_bytes == 1 else 15) or unit < 1:
        return f"vocabulary {found.vocabulary}, token_bytes {found.token_bytes}, row_tokens {found.row_tokens}"
    whole = found.piece_bytes * found.shard_pieces
    for name, shards in found.splits.items():
        for number, shard in enumerate(shards, 1):
            if not is_plain_name(shard.file):
                return f"{shard.file!r} in {name} is not the name of a file in its folder"
            if not (shard.text_bytes == whole or (number == len(shards) and 0 < shard.text_bytes < whole)):
                return f"{shard.file} in {name} holds {shard.text_bytes} bytes of text"
            if shard.text_bytes % unit:
                return f"{shard.file} in {name} ends inside a {'row' if found.row_tokens else 'token'}"
            if shard.bytes != tar_bytes(shard.text_bytes, found.piece_bytes):
                return f"{shard.file} in {name} has {shard.bytes} bytes for {shard.text_bytes} of text"
    return None


def tar_bytes(text_bytes: int, piece_bytes: int) -> int:
    """The size of a shard: a header for each piece, pieces padded to blocks, and two blocks at the end."""
    pieces, last = divmod(text_bytes, piece_bytes)
    blocks = pieces * (1 + -(-piece_bytes // BLOCK)) + (1 + -(-last // BLOCK) if last else 0)
    return BLOCK * (blocks + 2)


def problems(folder: Path, shards: list[Shard], *, hashes: bool) -> list[str]:
    """What is wrong with these shards, one message each: missing, unreadable, of another size, or (`hashes`) altered.

    Hashing reads every byte, on a few threads, about a second for each gigabyte; it also brings the shards into the
    page cache in the order in which disks are fast.
    """
    with ThreadPoolExecutor(HASHING_THREADS) as threads:
        found = threads.map(lambda shard: _problem(folder / shard.file, shard, hashes), shards)
        return [problem for problem in found if problem]


def _problem(path: Path, shard: Shard, hashes: bool) -> str | None:
    try:
        size = path.stat().st_size
        if size != shard.bytes:
            return f"{path} has {size} bytes instead of {shard.bytes}"
        if hashes and file_digest(path, HASH) != shard.sha256:
            return f"{path} was altered: its SHA-256 does not match"
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    return None
