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
        """The whole split, (bytes,) uint8, not to be written to."""
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
            raise self._lost(shard, f"can no longer be read: {error.strerror}") from None
        if len(content) < count:
            raise self._lost(shard, f"was cut while in use: it ends before byte {place + count:,}")
        return content

    @cached_property
    def _files(self) -> list[int]:
        """Descriptors of the shards, which are closed with this object."""
        shards, opened = range(len(self.description.splits[self.name])), []
        _make_room_for(len(shards))
        for shard in shards:
            try:
                opened.append(io.FileIO(self._path(shard)))
            except OSError as error:
                raise self._lost(shard, f"cannot be opened: {error.strerror}") from None
        self._open = opened
        return [file.fileno() for file in opened]

    def _path(self, shard: int) -> Path:
        return self.folder / self.description.splits[self.name][shard].file

    def _lost(self, shard: int, what: str) -> RunError:
        return RunError(
            f"{self._path(shard)} {what}. Copy or prepare the corpus again; the same command then goes on from the "
            "newest checkpoint."
        )


def _make_room_for(files: int) -> None:
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
        """Raises UserError naming every shard of `splits` that is missing, has another size or (`hashes`) was altered.

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
    """Random windows of one split of one or more corpora, each a pure function of (seed, instance).

    So any world size reads the same windows in the same step, and resuming needs nothing but the count of instances.
    Windows start anywhere in the split, uniformly and with replacement, and cross pieces and shards.
    """

    def __init__(self, splits: Sequence[Split], weights: Sequence[float], *, context: int, seed: int) -> None:
        self._splits = list(splits)
        self._cumulative_weights = torch.tensor(weights, dtype=torch.float64).cumsum(0)
        self._starts = torch.tensor([len(split) - context for split in splits], dtype=torch.int64)
        self._length = context + 1
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
        hashes: bool = True,
    ) -> Windows:
        """Windows of context + 1 bytes of prepared corpora, drawn from each in proportion to its weight.

        Without weights every window of all the corpora is equally likely. Raises UserError, for all folders at once:
        shards that are missing, truncated or (`hashes`) altered, a split smaller than one window, bad weights.
        """
        if not folders:
            raise UserError("no corpus was given; allowed: one or more folders that `upscale prepare` wrote")
        if weights is not None and (len(weights) != len(folders) or not all(0 < each < np.inf for each in weights)):
            raise UserError(
                f"weights {list(weights)} for {len(folders)} corpora; allowed: one positive number for each"
            )
        splits, mistakes = [], []
        for folder in folders:
            try:
                found = Corpus.open(folder, splits=[split], hashes=hashes).splits[split]
                if len(found) <= context:
                    raise UserError(
                        f"the {split} split of {folder} has {len(found):,} bytes; one window needs {context + 1:,} "
                        "(context + 1). Take a larger text or a smaller model.context."
                    )
                splits.append(found)
            except UserError as error:
                mistakes.append(str(error))
        if mistakes:
            raise UserError("\n".join(mistakes))
        return cls(splits, weights or [len(found) - context for found in splits], context=context, seed=seed)

    def places(self, instances: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Corpus and first byte of each window: two (n,) int64 for instances (n,) int64 in [0, 2^63).

        Word 0 of the instance's stream chooses the corpus, words 1 and 2 are a number of 63 bits whose remainder is the
        start: uniform to within starts / 2^63, in integers alone.
        """
        stream = Stream(self._seed, instances & 0xFFFFFFFF, instances >> 32)
        words = stream.bits(Purpose.DATA_ORDER, 4)
        drawn = words[:, 0].to(torch.float64) * 2.0**-32 * self._cumulative_weights[-1]
        corpora = torch.searchsorted(self._cumulative_weights, drawn, right=True)
        return corpora, ((words[:, 1] << 31) | (words[:, 2] >> 1)) % self._starts[corpora]

    def rows(self, instances: torch.Tensor) -> torch.Tensor:
        """The windows of these instances, (n, context + 1) uint8 on the CPU, for instances (n,) int64, each >= 0."""
        corpora, starts = (each.numpy() for each in self.places(instances))
        windows: list = [b""] * len(starts)
        for number, split in enumerate(self._splits):
            mine = np.flatnonzero(corpora == number)
            for place, window in zip(mine.tolist(), split.read_each(starts[mine], self._length), strict=True):
                windows[place] = window
        # One copy, into memory that torch may write to.
        content = np.frombuffer(bytearray().join(windows), np.uint8)
        return torch.from_numpy(content).view(len(windows), self._length)
