"""Reading prepared corpora: splits as strings of bytes, and random windows of them keyed by (seed, instance).

Each range is one `pread` from a tar shard as it is. Mapping the shards would read more windows a second
(tests/benchmarks/reading.py measures both), but a mapped file that another process cuts, or whose disk or server fails,
ends the process by SIGBUS without a word; a read that fails can say which file it was. Nothing is written, so a corpus
may lie on a read-only file system and any number of ranks may read it. What is read stays in the page cache, which the
ranks of a node share; where the folder is on a slow network file system, opening it reads all of it once, in order, to
check the hashes.
"""

from __future__ import annotations

import io
import os
import resource
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from upscale.corpora.shards import index
from upscale.errors import RunError, UserError
from upscale.randomness.streams import Purpose, Stream

SCANNED_BYTES = 1 << 24
"""What is read at once to look for rows without a target."""
OTHER_FILES = 512
"""Files and sockets that a rank may open besides a corpus."""


class Split:
    """One split of a prepared corpus: `len(split)` bytes, any range of which can be read, across pieces and shards.

    Reading raises RunError naming a shard that was cut, taken away or cannot be read since the corpus was checked.
    """

    def __init__(self, folder: Path, description: index.Index, name: str) -> None:
        self.folder, self.name, self.description = folder, name, description
        self._bytes = description.split_bytes(name)
        self._piece_bytes = description.piece_bytes
        self._shard_bytes = description.piece_bytes * description.shard_pieces
        self._stride = index.BLOCK * (1 + -(-description.piece_bytes // index.BLOCK))
        self._open: list[io.FileIO] = []

    def __getstate__(self) -> dict:
        """For another process, which opens the shards itself."""
        kept = {name: value for name, value in vars(self).items() if name != "_files"}
        return {**kept, "_open": []}

    def __len__(self) -> int:
        return self._bytes

    def read(self, start: int, length: int) -> bytes:
        """The bytes from `start` on; start + length is at most the split's length."""
        parts = []
        while length > 0:
            shard, place, left = self._place(start)
            count = min(length, left)
            parts.append(self._pread(shard, place, count))
            start, length = start + count, length - count
        return b"".join(parts)

    def read_each(self, starts: np.ndarray, length: int) -> list[bytes]:
        """The `length` bytes from each of `starts` (n,) int64 on.

        The places are computed at once, so that each range that lies in one piece costs one call of the system.
        """
        places = zip(*(column.tolist() for column in (starts, *self._place(starts))), strict=True)
        pread, files = os.pread, self._files
        try:
            found = [
                pread(files[shard], length, place) if left >= length else self.read(start, length)
                for start, shard, place, left in places
            ]
        except OSError:
            found = []
        if sum(map(len, found)) < length * len(starts):  # again, one by one, for the name of the file
            return [self.read(start, length) for start in starts.tolist()]
        return found

    def text(self) -> np.ndarray:
        """The whole split, (bytes,) uint8, not to be written to; raises UserError where tokens are no bytes."""
        if self.description.token_bytes > 1:
            raise UserError(f"{self.folder} holds tokens above bytes, but a text of bytes is wanted here")
        return np.frombuffer(self.read(0, len(self)), np.uint8)

    def _place(self, start):
        """The shard of a byte, its place in that file, and the bytes from there to the end of its piece.

        For an int or, elementwise, an int64 array.
        """
        shard, inside = start // self._shard_bytes, start % self._shard_bytes
        piece, offset = inside // self._piece_bytes, inside % self._piece_bytes
        return shard, piece * self._stride + index.BLOCK + offset, self._piece_bytes - offset

    def _pread(self, shard: int, place: int, count: int) -> bytes:
        try:
            content = os.pread(self._files[shard], count, place)
        except OSError as error:
            raise self._shard_error(shard, f"can no longer be read: {error.strerror}") from None
        if len(content) < count:
            raise self._shard_error(shard, f"was cut while in use: it ends before byte {place + count:,}")
        return content

    @cached_property
    def _files(self) -> list[int]:
        """Descriptors of the shards, which are closed with this object."""
        shards, opened = range(len(self.description.splits[self.name])), []
        _raise_limit_of_files(len(shards))
        for shard in shards:
            try:
                opened.append(io.FileIO(self._path(shard)))
            except OSError as error:
                raise self._shard_error(shard, f"cannot be opened: {error.strerror}") from None
        self._open = opened
        return [file.fileno() for file in opened]

    def _path(self, shard: int) -> Path:
        return self.folder / self.description.splits[self.name][shard].file

    def _shard_error(self, shard: int, what: str) -> RunError:
        return RunError(
            f"{self._path(shard)} {what}. Copy or prepare the corpus again; the same command then goes on from the "
            "newest checkpoint."
        )


def _raise_limit_of_files(files: int) -> None:
    """Raise this process's limit of open files, as far as it may, where so many more would come near it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = len(os.listdir("/dev/fd")) + files + OTHER_FILES
    if soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class Corpus:
    """A prepared corpus whose shards have been checked.

    Attributes: `name` (of its recipe), `folder`, `description` (the index) and `splits` (name -> Split).
    """

    def __init__(self, folder: Path, description: index.Index) -> None:
        self.folder, self.description, self.name = folder, description, description.corpus
        self.splits = {name: Split(folder, description, name) for name in description.splits}

    @classmethod
    def open(cls, folder: str | Path, *, splits: Sequence[str] = index.SPLITS, hashes: bool = True) -> Corpus:
        """The corpus in a folder; raises UserError naming every shard of `splits` that is missing, has another size or
        (`hashes`) was altered.

        Every rank checks for itself, so that copies on the nodes' own disks are all checked.
        """
        folder = Path(folder)
        description = index.read(folder)
        absent = [name for name in splits if name not in description.splits]
        if absent:
            raise UserError(f"{folder} has no split {', '.join(absent)}; it has {', '.join(description.splits)}")
        shards = [shard for name in splits for shard in description.splits[name]]
        if found := index.problems(folder, shards, hashes=hashes):
            raise UserError(f"{'; '.join(found)}. Copy the corpus again, or delete {folder} and prepare it again.")
        return cls(folder, description)


class Windows:
    """Rows of one split of one or more corpora, each a pure function of (seed, instance).

    So any world size reads the same rows in the same step, and resuming needs nothing but the count of instances. Of a
    text a row is a random window: it starts at any token, uniformly and with replacement, and crosses pieces and
    shards. Of rows that `upscale generate` wrote, instance i is row i, from the first again after the last (of several
    corpora: wherever this one is drawn).
    """

    masked = False
    """Whether some rows have tokens that are no targets."""

    def __init__(self, splits: Sequence[Split], weights: Sequence[float], *, context: int, seed: int) -> None:
        self._splits = list(splits)
        self._cumulative_weights = torch.tensor(weights, dtype=torch.float64).cumsum(0)
        self._starts = torch.tensor([_starts(split, context) for split in splits], dtype=torch.int64)
        self._strides = torch.tensor([_stride(split) for split in splits], dtype=torch.int64)
        self._of_rows = torch.tensor([split.description.row_tokens is not None for split in splits])
        self._length = context + 1
        self._token_bytes = self._splits[0].description.token_bytes
        self._seed = seed

    @classmethod
    def open(
        cls,
        folders: Sequence[str | Path],
        *,
        weights: Sequence[float] | None = None,
        split: str = "train",
        context: int,
        seed: int,
        vocabulary: int | None = None,
        first_target: int = 1,
        hashes: bool = True,
    ) -> Windows:
        """Rows of context + 1 tokens of prepared corpora, drawn from each in proportion to its weight.

        Without weights every row of all the corpora is equally likely. Raises UserError, for all folders at once:
        shards that are missing, truncated or (`hashes`) altered, a split smaller than one window, rows that are too
        short, rows none of whose tokens from `first_target` to `context` is a target, tokens that a model of
        `vocabulary` does not have, tokens of different sizes, bad weights.
        """
        if not folders:
            raise UserError("no corpus was given; allowed: one or more folders that `upscale prepare` wrote")
        if weights is not None and (len(weights) != len(folders) or not all(0 < each < np.inf for each in weights)):
            raise UserError(
                f"weights {list(weights)} for {len(folders)} corpora; allowed: one positive number for each"
            )
        splits, mistakes, masked = [], [], False
        for folder in folders:
            try:
                found = Corpus.open(folder, splits=[split], hashes=hashes).splits[split]
                _check(found, context, vocabulary)
                masked |= _choose_targets(found, context, first_target)
                splits.append(found)
            except UserError as error:
                mistakes.append(str(error))
        if mistakes:
            raise UserError("\n".join(mistakes))
        if len({found.description.token_bytes for found in splits}) > 1:
            sizes = ", ".join(f"{found.folder}: {found.description.token_bytes}" for found in splits)
            raise UserError(f"bytes a token differ: {sizes}. Mix corpora of bytes, or corpora of larger tokens, only.")
        windows = cls(splits, weights or [_starts(found, context) for found in splits], context=context, seed=seed)
        windows.masked = masked
        return windows

    def places(self, instances: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Corpus and first byte of each row: two (n,) int64 for instances (n,) int64 in [0, 2^63).

        Word 0 of the instance's stream chooses the corpus, words 1 and 2 are a number of 63 bits whose remainder is the
        start of a window: uniform to within starts / 2^63, in integers alone.
        """
        stream = Stream(self._seed, instances & 0xFFFFFFFF, instances >> 32)
        words = stream.bits(Purpose.DATA_ORDER, 4)
        drawn = words[:, 0].to(torch.float64) * 2.0**-32 * self._cumulative_weights[-1]
        corpora = torch.searchsorted(self._cumulative_weights, drawn, right=True)
        numbers = torch.where(self._of_rows[corpora], instances, (words[:, 1] << 31) | (words[:, 2] >> 1))
        return corpora, numbers % self._starts[corpora] * self._strides[corpora]

    def rows(self, instances: torch.Tensor) -> torch.Tensor:
        """The rows of these instances, (n, context + 1) on the CPU, for instances (n,) int64, each >= 0.

        uint8, or int16 for corpora of tokens above bytes and of rows with tokens that are no targets.
        """
        corpora, starts = (each.numpy() for each in self.places(instances))
        windows: list = [b""] * len(starts)
        for number, split in enumerate(self._splits):
            mine = np.flatnonzero(corpora == number)
            found = split.read_each(starts[mine], self._length * self._token_bytes)
            for place, window in zip(mine.tolist(), found, strict=True):
                windows[place] = window
        # One copy, into memory that torch may write to.
        content = np.frombuffer(bytearray().join(windows), np.uint8 if self._token_bytes == 1 else "<i2")
        return torch.from_numpy(content).view(len(windows), self._length)


def _stride(split: Split) -> int:
    """Bytes from one possible start of a row to the next."""
    return split.description.token_bytes * (split.description.row_tokens or 1)


def _starts(split: Split, context: int) -> int:
    """Possible starts of a row: those of windows, or the rows there are."""
    return len(split) // _stride(split) - (context if split.description.row_tokens is None else 0)


def _check(split: Split, context: int, vocabulary: int | None) -> None:
    """Raises UserError where a model of this context and vocabulary cannot read the split."""
    found, folder = split.description, split.folder
    tokens = len(split) // found.token_bytes
    if found.row_tokens is not None and found.row_tokens <= context:
        raise UserError(
            f"{folder} holds rows of {found.row_tokens:,} tokens; model.context = {context} needs {context + 1:,} "
            f"(context + 1). Set model.context={found.row_tokens - 1}, or generate longer rows."
        )
    if _starts(split, context) < 1:
        raise UserError(
            f"the {split.name} split of {folder} has {tokens:,} {'bytes' if found.token_bytes == 1 else 'tokens'}; one "
            f"window needs {context + 1:,} (context + 1). Take a larger text or a smaller model.context."
        )
    if vocabulary is not None and vocabulary < found.vocabulary:
        raise UserError(
            f"{folder} has tokens below {found.vocabulary:,}, but model.vocabulary is {vocabulary:,}: "
            f"set model.vocabulary={found.vocabulary}"
        )


def _choose_targets(split: Split, context: int, first_target: int) -> bool:
    """Whether the split has tokens that are no targets: negative ones, of rows that sources wrote.

    Every row is looked at; raises UserError where one would be read without a target, so that its loss is no number.
    """
    found = split.description
    if found.row_tokens is None or found.token_bytes == 1:
        return False
    stride = _stride(split)
    at_once = max(1, SCANNED_BYTES // stride) * stride
    without, masked = 0, False
    for start in range(0, len(split), at_once):
        content = split.read(start, min(at_once, len(split) - start))
        rows = np.frombuffer(content, "<i2").reshape(-1, found.row_tokens)
        masked |= bool((rows < 0).any())
        without += int((rows[:, first_target : context + 1] < 0).all(axis=1).sum())
    if without:
        whole = (context, first_target) == (found.row_tokens - 1, 1)
        way = "Generate" if whole else f"Set model.context={found.row_tokens - 1} and data.first_target=1, or generate"
        raise UserError(
            f"{without:,} of the {len(split) // stride:,} rows of {split.folder} have no target among their tokens "
            f"{first_target} to {context} (data.first_target to model.context). {way} rows that all have one."
        )
    return masked
