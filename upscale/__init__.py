"""Upscale: pre-train byte-level transformers on synthetic data that every rank makes on its own device.

The functions here are for anyone's own training loop (docs/own_loop.md). Importing this package imports nothing else:
each function imports what it needs when it is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from upscale.corpora.shards.index import Index
    from upscale.data.stream import Form, Given, RowStream
    from upscale.evaluation.own_model import Model
    from upscale.model.transformer import Transformer


def rows(
    given: Given,
    overrides: Sequence[str] = (),
    *,
    rank: int | None = None,
    world_size: int | None = None,
    form: Form = "pairs",
    device: torch.device | str = "cpu",
) -> RowStream:
    """An endless dataset of rows that resumes exactly in any world; see `upscale.data.stream.rows`."""
    from upscale.data.stream import rows

    return rows(given, overrides, rank=rank, world_size=world_size, form=form, device=device)


def generate(
    given: Given,
    overrides: Sequence[str] = (),
    *,
    rows: int,
    to: str | Path,
    processes: int | None = None,
    device: torch.device | str = "cpu",
) -> Index:
    """The index of a folder of shards with that many rows; see `upscale.data.generation.generate`."""
    from upscale.data.generation import generate

    return generate(given, overrides, rows=rows, to=to, processes=processes, device=device)


def load(path: str | Path, device: torch.device | str = "cpu", step: int | None = None) -> Transformer:
    """The model of a run directory or of a file of `upscale export`; see `upscale.checkpoint.export.load`."""
    from upscale.checkpoint.export import load

    return load(path, device, step)


def evaluate(
    model: Model,
    tasks: Literal["all"] | Sequence[str] = "all",
    *,
    context: int | None = None,
    slices: int = 4_000,
    data_dir: str | Path | None = None,
    split: str = "validation",
    batch_rows: int = 64,
    device: torch.device | str | None = None,
) -> list[dict[str, Any]]:
    """A record for each task, of any model; see `upscale.evaluation.own_model.evaluate`."""
    from upscale.evaluation.own_model import evaluate

    return evaluate(
        model,
        tasks,
        context=context,
        slices=slices,
        data_dir=data_dir,
        split=split,
        batch_rows=batch_rows,
        device=device,
    )


def perplexity(
    model: Model,
    corpus: str | Path,
    *,
    split: str = "validation",
    context: int | None = None,
    rows: int | None = None,
    batch_rows: int = 16,
    device: torch.device | str | None = None,
) -> dict[str, Any]:
    """Perplexity and bits per byte of a prepared corpus's split; see `upscale.evaluation.own_model.perplexity`."""
    from upscale.evaluation.own_model import perplexity

    return perplexity(model, corpus, split=split, context=context, rows=rows, batch_rows=batch_rows, device=device)
