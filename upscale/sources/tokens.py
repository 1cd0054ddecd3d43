"""What a token is: its type in a row, whether it is a target, and random names for the ids that a program writes.

Where a config has a source some of whose tokens are no targets, rows are int16, and such a token is stored as the
bitwise complement of its id: ids are 0 to 32767, so it is negative, and every other one is a target.
"""

import torch

from upscale.randomness.streams import Stream

LARGEST_VOCABULARY = 1 << 15
"""Rows are int16 where a byte is too small."""


def check_vocabulary(vocabulary: int) -> None:
    if not 1 <= vocabulary <= LARGEST_VOCABULARY:
        raise ValueError(f"vocabulary is {vocabulary}; allowed: 1 to {LARGEST_VOCABULARY} (rows are at most int16)")


def token_dtype(vocabulary: int) -> torch.dtype:
    """The type of rows: uint8 up to 256 tokens, else int16."""
    return torch.uint8 if vocabulary <= 256 else torch.int16


def read_only(tokens: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """int16 rows of int64 tokens, of which those at `where` (bool, of the same shape) are read, but are no targets."""
    return torch.where(where, ~tokens, tokens).to(torch.int16)


def ids(rows: torch.Tensor) -> torch.Tensor:
    """The token ids of uint8 or int16 rows, of the same type, whether they are targets or not."""
    return rows if rows.dtype == torch.uint8 else torch.where(rows < 0, ~rows, rows)


def permutations(stream: Stream, purpose: int, rows: int, vocabulary: int) -> torch.Tensor:
    """One random permutation of the ids for each row, (L, rows, vocabulary) int64.

    Every id gets a random word and they are sorted by it; the id is the key's low half, so that no two keys are equal.
    """
    words = stream.bits(purpose, rows * vocabulary).view(len(stream), rows, vocabulary)
    keys = (words << 15) | torch.arange(vocabulary, device=stream.device)
    return keys.sort(dim=-1).values & (LARGEST_VOCABULARY - 1)


def renamed(tokens: torch.Tensor, stream: Stream, purpose: int, vocabulary: int) -> torch.Tensor:
    """(L, rows, length) int64 tokens under each row's own random permutation of the vocabulary."""
    return permutations(stream, purpose, tokens.shape[1], vocabulary).gather(-1, tokens)


def drawn(shares: torch.Tensor, heights: torch.Tensor) -> torch.Tensor:
    """Tokens (..., draws) int64 for heights (..., draws) in [0, 1) over unnormalised shares (..., vocabulary) float64.

    A share is rounded down to a multiple of 2^-32, of which at least one must remain, and sums are of integers: no
    device and no number of rows changes an exact sum. Shares of a row may sum to 2^20 at most.
    """
    cumulative = shares.mul(2.0**32).to(torch.int64).cumsum(dim=-1)
    thresholds = heights.to(torch.float64).mul(cumulative[..., -1:].to(torch.float64)).to(torch.int64)
    return torch.searchsorted(cumulative, thresholds, right=True)
