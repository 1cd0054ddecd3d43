"""The metric: bits per character, mean -log2 p(last character | the characters before it) over random slices.

Bloem 2025 takes 10 000 slices of 512 characters. The published code gives the model 512 characters of context where
it trained on 511 positions, so an untrained position embedding predicts; here the context is 511 characters, and the
caller puts the model in eval mode, which the published code does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from upscale.distributed.world import World

TOKENS = 256

GROUPS, LEAST_IN_A_GROUP = 20, 2

Predict = Callable[[torch.Tensor], torch.Tensor]
"""(rows, context - 1) int64 tokens on the world's device -> (rows, vocabulary >= 256) logits of the next token.

Log-probabilities are logits too. All columns enter the softmax: nothing is restricted to the data's alphabet.
"""

Progress = Callable[[int, int, str], None]
"""Called with (done, total, label)."""


class Interrupted(Exception):
    """A rank was asked to stop before the end; raised on every rank at the same place."""


@dataclass(frozen=True)
class Measurement:
    """Bits per character of one string. NaN or infinite when the model's logits are."""

    bits_per_character: float
    standard_error: float
    """Of the mean over slices, taken as independent; NaN for fewer than two slices."""
    samples: int
    groups: tuple[float, ...] = ()
    """Bits per character of GROUPS consecutive parts of the string, each with as many of the slices. Two models
    measured on the same slices differ by less than their standard errors say; these tell how surely. Empty for too few
    slices."""


def target_positions(characters: int, *, context: int, slices: int, seed: int = 0) -> np.ndarray:
    """The targets' indices in a string: `slices` of those that have context - 1 characters before them.

    Drawn without replacement, sorted, int64; all of them when there are fewer. Raises ValueError when there is none.
    """
    available = characters - (context - 1)
    if available < 1:
        raise ValueError(f"{characters} characters are too few for a slice of {context}")
    if slices >= available:
        return np.arange(context - 1, characters)
    return np.sort(np.random.default_rng(seed).choice(available, slices, replace=False)) + context - 1


def measure(
    predict: Predict,
    data: Sequence[np.ndarray],
    positions: Sequence[np.ndarray],
    *,
    context: int,
    world: World,
    batch_rows: int,
    labels: Sequence[str] | None = None,
    progress: Progress | None = None,
    requested: Callable[[], bool] | None = None,
) -> list[Measurement]:
    """Bits per character of several strings, in one pass over all their slices.

    `data` are (characters,) uint8 arrays, `positions` the targets in each, non-empty, int64. The slices of all strings
    form one list that is dealt out to the ranks, so that padding is paid once and not once a string. Every rank calls
    `predict` equally often and always with `batch_rows` rows (the last ones padded): a sharded forward contains
    collectives. Sums are float64 and reduced once, at the end, so the number of ranks only changes their rounding.

    Raises ValueError when `predict` returns another shape, and Interrupted, on every rank before the same batch, when
    `requested` has become true on one.
    """
    owners = np.repeat(np.arange(len(data)), [len(targets) for targets in positions])
    targets = np.concatenate([*positions, np.empty(0, np.int64)]).astype(np.int64)
    if len(targets) == 0:
        return []
    calls = math.ceil(math.ceil(len(targets) / world.size) / batch_rows)
    mine = np.arange(calls * batch_rows) * world.size + world.rank
    real = mine < len(targets)
    mine[~real] = 0
    bits = []
    asked = None
    for call in range(calls):
        if requested is not None:
            # What was asked a batch ago has been answered by now: no batch waits for the other ranks.
            if asked is not None and asked():
                raise Interrupted
            asked = world.any_later(requested())
        batch = mine[call * batch_rows : (call + 1) * batch_rows]
        windows = _windows(data, owners[batch], targets[batch], context)
        bits.append(_bits(predict, torch.from_numpy(windows).to(world.device).long()))
        if progress is not None:
            progress(call + 1, calls, labels[owners[batch[0]]] if labels else "")
    if asked is not None:
        asked()  # the measurement is done, whatever the answer
    counts = np.array([len(each) for each in positions])
    groups = np.concatenate([np.arange(count) * GROUPS // max(count, 1) for count in counts])
    mine_bits, mine = torch.cat(bits).cpu().numpy()[real], mine[real]
    cells = owners[mine] * GROUPS + groups[mine]
    # float64: bincount returns integers to a rank that has no rows of its own
    sums = np.empty((3, len(data) * GROUPS))
    for row, weights in zip(sums, (np.ones_like(mine_bits), mine_bits, mine_bits**2), strict=True):
        row[:] = np.bincount(cells, weights=weights, minlength=len(data) * GROUPS)
    totals = world.all_reduce_sum(torch.from_numpy(sums).to(world.device)).cpu().numpy().reshape(3, len(data), GROUPS)
    return [_measurement(*totals[:, index]) for index in range(len(data))]


def _windows(data: Sequence[np.ndarray], owners: np.ndarray, targets: np.ndarray, context: int) -> np.ndarray:
    """The slices that end at `targets`, (rows, context) uint8; row i comes from data[owners[i]]."""
    windows = np.empty((len(targets), context), np.uint8)
    offsets = np.arange(1 - context, 1)
    for owner in np.unique(owners):
        rows = owners == owner
        windows[rows] = data[owner][targets[rows, None] + offsets]
    return windows


def _bits(predict: Predict, windows: torch.Tensor) -> torch.Tensor:
    """-log2 p of the last column, (rows,) float64, left on the device: no synchronisation per batch."""
    with torch.no_grad():
        logits = predict(windows[:, :-1].contiguous())
        if logits.ndim != 2 or logits.shape[0] != len(windows) or logits.shape[1] < TOKENS:
            raise ValueError(
                f"predict returned {tuple(logits.shape)}; the logits of the next token, ({len(windows)}, >= {TOKENS}), "
                "are expected"
            )
        log_probabilities = torch.log_softmax(logits.double(), dim=-1)
        target = windows[:, -1:].to(logits.device)
        return log_probabilities.gather(1, target).squeeze(1) / -math.log(2)


def _measurement(counts: np.ndarray, totals: np.ndarray, squares: np.ndarray) -> Measurement:
    count, total = float(counts.sum()), float(totals.sum())
    mean = total / count
    variance = max(float(squares.sum()) - total * mean, 0.0) / (count - 1) if count > 1 else math.nan
    groups = tuple((totals / counts).tolist()) if counts.min() >= LEAST_IN_A_GROUP else ()
    return Measurement(mean, math.sqrt(variance / count), int(count), groups)
