"""Evaluated texts that are trained on, which would make their figures worthless."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from upscale.config import Config
from upscale.corpora.shards import index
from upscale.corpora.shards.reading import Corpus
from upscale.evaluation.dataset import Dataset, EvaluationError

STRETCHES, STRETCH_BYTES, CHUNK_BYTES = 8, 100, 1 << 26


def overlaps(config: Config, datasets: Sequence[Dataset]) -> list[str]:
    """One warning for each evaluated text of which the training split holds half of STRETCHES evenly spaced stretches.

    Reads the split once, a chunk at a time; licences and markup that texts share make a few stretches, not half.
    """
    if config.data.kind != "corpus":
        return []
    wanted = {dataset.name: _stretches(dataset.data.tobytes()) for dataset in datasets if dataset.kind == "text"}
    found: dict[str, set[bytes]] = {name: set() for name in wanted}
    for corpus in config.data.corpora:
        split = Corpus.open(corpus.path, splits=[config.data.split], hashes=False).splits[config.data.split]
        for start in range(0, len(split), CHUNK_BYTES):
            content = split.read(start, min(CHUNK_BYTES + STRETCH_BYTES, len(split) - start))
            for name, stretches in wanted.items():
                found[name] |= {stretch for stretch in stretches if stretch in content}
    return [
        f"WARNING: {name} is evaluated on text that is trained on: set evaluation.data_dir to the folder of the "
        "prepared corpus, whose validation split is held out"
        for name, seen in found.items()
        if len(seen) >= STRETCHES / 2
    ]


def check_tokens(config: Config) -> None:
    """Raises EvaluationError where the run's tokens are a tokenizer's: tasks and texts are bytes."""
    for corpus in config.data.corpora:
        if (Path(corpus.path) / index.INDEX).is_file():
            found = index.read(Path(corpus.path))
            if found.token_bytes > 1 and found.row_tokens is None:
                raise EvaluationError(
                    f"{corpus.path} holds a tokenizer's tokens, but the evaluation's tasks are bytes: set "
                    "evaluation.every=0, and measure with `upscale evaluate --corpus`"
                )


def _stretches(text: bytes) -> set[bytes]:
    """STRETCHES pieces of a text, none if it is too short for them to be different."""
    step = len(text) // STRETCHES
    return {text[place * step :][:STRETCH_BYTES] for place in range(STRETCHES)} if step >= STRETCH_BYTES else set()
