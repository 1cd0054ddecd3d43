"""Where training rows come from: lanes that sources write, or windows of prepared corpora."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from upscale.config import Config, DataConfig
from upscale.corpora.shards import index
from upscale.corpora.shards.reading import Windows
from upscale.data.lanes import NO_SOURCE, from_config
from upscale.errors import UserError


class Rows(Protocol):
    """One rank's lanes: the same rows come out of all lanes together, however they are divided among ranks."""

    lanes: tuple[int, ...]
    """This rank's numbers among all lanes."""

    method: str
    """How rows are computed: where it differs, so do the rows, by amplified roundings."""

    def draw(self, rows_per_lane: int) -> torch.Tensor:
        """The next training rows, (lanes * rows_per_lane, context + 1) tokens on the device, lane after lane.

        Tokens are uint8, or int16 where the vocabulary exceeds 256 or some are no targets: those are negative, the
        complements of their ids (upscale/sources/tokens.py).
        """

    def origins(self) -> torch.Tensor:
        """The place in `data.sources` of what wrote each of the rows drawn last, 255 for no source: (rows,) uint8."""

    def state(self) -> dict[str, torch.Tensor]:
        """All that must be saved: `buffers` (lanes, buffer_rows, context + 1) tokens, `rounds` (lanes,) int64, and of
        synthetic rows `origins` (lanes, buffer_rows) uint8."""

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from these lanes' state, whichever ranks wrote it."""


class RestorableRows(Rows, Protocol):
    """Rows that can remember one of their states."""

    def take_snapshot(self) -> None:
        """Remember the state as it is now."""

    def snapshot(self) -> dict[str, torch.Tensor]:
        """The state remembered last."""

    def close(self) -> None:
        """End what was started for them; they can be drawn no more."""


class SnapshotRows:
    """Rows of this process that can remember one of their states."""

    def __init__(self, rows: Rows) -> None:
        self.lanes, self.method = rows.lanes, rows.method
        self.draw, self.origins, self.state, self.load_state = rows.draw, rows.origins, rows.state, rows.load_state
        self._snapshot: dict[str, torch.Tensor] = {}

    def take_snapshot(self) -> None:
        self._snapshot = self.state()

    def snapshot(self) -> dict[str, torch.Tensor]:
        return self._snapshot

    def close(self) -> None:
        return


class CorpusLanes:
    """Lanes that read: row number k of lane l of L is row k L + l of the corpora.

    So the first n rows of all lanes together are rows 0 to n - 1 at any number of ranks. A lane's state is its count
    of rows, where other lanes have their rounds; in place of a buffer stands a digest of the texts that are read.
    """

    def __init__(
        self, windows: Windows, digest: bytes, lanes_total: int, lanes: Sequence[int], device: torch.device | str
    ) -> None:
        self.windows, self.lanes_total, self.method = windows, lanes_total, "exact"
        self.digest = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
        self.lanes, self.device = tuple(lanes), torch.device(device)
        self.rounds = torch.zeros(len(lanes), dtype=torch.int64)
        """Rows read so far, (lanes,) int64, on the CPU."""
        self.drawn = 0

    def draw(self, rows_per_lane: int) -> torch.Tensor:
        turns = self.rounds[:, None] + torch.arange(rows_per_lane)
        instances = turns * self.lanes_total + torch.tensor(self.lanes)[:, None]
        self.rounds += rows_per_lane
        self.drawn = instances.numel()
        return self.windows.rows(instances.flatten()).to(self.device, non_blocking=True)

    def origins(self) -> torch.Tensor:
        return torch.full((self.drawn,), NO_SOURCE, dtype=torch.uint8, device=self.device)

    def state(self) -> dict[str, torch.Tensor]:
        return {"buffers": self.digest.expand(len(self.lanes), -1).clone(), "rounds": self.rounds.clone()}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Raises UserError when the state is of other texts, another split or other weights."""
        if not all(torch.equal(saved, self.digest) for saved in state["buffers"]):
            raise UserError(
                "data.corpora: the checkpoint was trained on other texts, another data.split or other weights than "
                "these. Give those again (config.yaml of the run names them), or start a new run."
            )
        self.rounds.copy_(state["rounds"])


@dataclass(frozen=True)
class Opened:
    """What makes a rank's rows from its lanes and its device."""

    make: Callable[[Sequence[int], torch.device | str], Rows]
    masked: bool
    """Whether some rows tell, token by token, which are targets."""

    def __call__(self, lanes: Sequence[int], device: torch.device | str) -> Rows:
        return self.make(lanes, device)


def open_rows(config: Config) -> Opened:
    """What makes a rank's rows, for a resolved config.

    Corpora are opened and checked here, before anything is started or written; raises UserError for bad ones.
    """
    data = config.data
    if data.kind == "synthetic":
        return Opened(functools.partial(from_config, config), data.masked)
    windows = Windows.open(
        [corpus.path for corpus in data.corpora],
        weights=[corpus.weight for corpus in data.corpora],
        split=data.split,
        context=config.model.context,
        seed=config.seed("order"),
        vocabulary=config.model.vocabulary,
        first_target=data.first_target,
    )
    return Opened(functools.partial(CorpusLanes, windows, _digest(data), data.lanes), windows.masked)


def _digest(data: DataConfig) -> bytes:
    """SHA-256 of what decides which rows come: the shards' own hashes, the split, the weights; not the folders."""
    texts = [
        [[shard.sha256 for shard in index.read(Path(corpus.path)).splits[data.split]], corpus.weight]
        for corpus in data.corpora
    ]
    return hashlib.sha256(json.dumps([data.split, texts]).encode()).digest()
