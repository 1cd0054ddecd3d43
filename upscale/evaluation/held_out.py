"""How well a model predicts the held-out split of a prepared corpus: perplexity, and bits per byte for any tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from upscale.corpora.shards.reading import Corpus
from upscale.evaluation.dataset import EvaluationError

Score = Callable[[torch.Tensor], torch.Tensor]
"""(rows, positions) int64 tokens to (rows, positions, vocabulary) logits."""


def measure(
    score: Score,
    folder: str | Path,
    *,
    split: str,
    context: int,
    rows: int | None,
    batch_rows: int,
    device: torch.device | str,
    vocabulary: int | None = None,
) -> dict[str, Any]:
    """What a model gives the split: `bits_per_token`, its `standard_error` over rows, `perplexity`, `bits_per_byte`.

    The split is cut into rows of context + 1 tokens that share their end with the next one's begin, so that each token
    is predicted once; `rows` of them, evenly spaced (None: all whole ones). Bits per byte are bits per token times the
    split's tokens over its bytes of text. Perplexity is 2 to the bits per token, and so of the model's tokens: compare
    models of different tokenizers by bits per byte only.

    Raises UserError for a folder that is no corpus of text, no such split or one shorter than a row, and tokens that
    the model (of `vocabulary`, where it is known) or its logits do not have.
    """
    corpus = Corpus.open(folder, splits=[split])
    found, text = corpus.description, corpus.splits[split]
    if found.row_tokens is not None:
        raise EvaluationError(f"{folder} holds rows that sources wrote; perplexity and bits per byte are of texts")
    if vocabulary is not None and vocabulary < found.vocabulary:
        raise EvaluationError(
            f"{folder} has tokens below {found.vocabulary:,}, but the model's are below {vocabulary:,}"
        )
    tokens = len(text) // found.token_bytes
    whole = (tokens - 1) // context
    if whole < 1:
        raise EvaluationError(f"the {split} split of {folder} has {tokens:,} tokens; one row needs {context + 1:,}")
    count = whole if rows is None else min(rows, whole)
    starts = np.arange(count) * whole // count * context * found.token_bytes
    sums = []
    for first in range(0, count, batch_rows):
        content = b"".join(text.read_each(starts[first : first + batch_rows], (context + 1) * found.token_bytes))
        batch = np.frombuffer(content, np.uint8 if found.token_bytes == 1 else "<i2").reshape(-1, context + 1)
        sums.append(_bits(score, torch.from_numpy(batch.astype(np.int64)).to(device), found.vocabulary))
    bits = torch.cat(sums).cpu() / context
    mean = float(bits.mean())
    text_bytes = len(text)
    if found.token_bytes > 1:
        try:
            text_bytes = int(found.provenance["text_bytes"][split])
        except (LookupError, TypeError, ValueError):
            raise EvaluationError(f"{folder} does not say how long its text is in bytes: prepare it again") from None
    return {
        "corpus": found.corpus,
        "split": split,
        "rows": count,
        "bits_per_token": mean,
        "standard_error": float(bits.std()) / math.sqrt(count) if count > 1 else None,
        "perplexity": 2**mean,
        "bits_per_byte": mean * tokens / text_bytes,
    }


@torch.no_grad()
def _bits(score: Score, batch: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Bits of each row's targets, (rows,) float64."""
    logits = score(batch[:, :-1])
    wanted = (*batch[:, 1:].shape,)
    if logits.ndim != 3 or logits.shape[:2] != wanted or logits.shape[2] < vocabulary:
        raise EvaluationError(
            f"the model gave {tuple(logits.shape)}; wanted are logits of every position, {(*wanted, vocabulary)} or "
            "more tokens"
        )
    logs = torch.log_softmax(logits.double(), -1).gather(-1, batch[:, 1:, None].to(logits.device))
    return logs.sum((1, 2)) / -math.log(2)
