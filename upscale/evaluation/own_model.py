"""Measuring any model on our tasks, beside the same baselines: a module of PyTorch, or a function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from upscale.distributed.world import World
from upscale.evaluation import held_out, suite
from upscale.evaluation.dataset import EvaluationError
from upscale.evaluation.tasks import HELD_OUT_SPLITS
from upscale.model.transformer import Transformer

Model: TypeAlias = "torch.nn.Module | Callable[[torch.Tensor], Any]"
CONTEXT = 512
"""The paper's, and that of published figures."""


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
    """A record for each task, as in evaluations.jsonl without the step; `upscale.evaluation.table` prints them.

    `model` maps (rows, positions) int64 bytes to logits of at least 256 tokens: of every position, (rows, positions,
    tokens), or of the next token alone, (rows, tokens); also as the attribute `logits` or the first item of a tuple. A
    module is measured in eval mode without gradients, and left as it was. `context` is characters in a slice: the model
    sees one less and predicts the last; default: that of a model of ours, else 512. `device`: where the tokens go;
    default: where a module's parameters are, else the CPU. In a group of ranks each measures for itself, all alike.

    Raises UserError for unknown tasks, numbers below 1 and an unknown split, before the model is called, and ValueError
    for logits of another shape.
    """
    if context is None:
        context = model.config.context if isinstance(model, Transformer) else CONTEXT
    for name, value, least in (("context", context, 2), ("slices", slices, 1), ("batch_rows", batch_rows, 1)):
        if value < least:
            raise EvaluationError(f"{name} is {value}; allowed: {least} or more")
    if split not in HELD_OUT_SPLITS:
        raise EvaluationError(f"split is {split!r}; allowed: {', '.join(HELD_OUT_SPLITS)}")
    datasets = suite.datasets(tasks, data_dir=data_dir, split=split)
    with _in_eval_mode(model), torch.no_grad():
        return suite.evaluate(
            lambda tokens: _next_logits(model(tokens)),
            datasets,
            slices=slices,
            context=context,
            world=World.single(_device_of(model) if device is None else device),
            batch_rows=batch_rows,
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
    """What a model gives a held-out split of a prepared corpus; see `upscale.evaluation.held_out.measure`.

    `model` is as for `evaluate`, but gives logits of every position; `context` is how many tokens it sees at most.
    """
    if context is None:
        context = model.config.context if isinstance(model, Transformer) else CONTEXT
    for name, value in (("context", context), ("rows", 1 if rows is None else rows), ("batch_rows", batch_rows)):
        if value < 1:
            raise EvaluationError(f"{name} is {value}; allowed: 1 or more")
    with _in_eval_mode(model), torch.no_grad():
        return held_out.measure(
            lambda tokens: _logits(model(tokens)),
            corpus,
            split=split,
            context=context,
            rows=rows,
            batch_rows=batch_rows,
            device=_device_of(model) if device is None else device,
            vocabulary=model.config.vocabulary if isinstance(model, Transformer) else None,
        )


def _next_logits(output: Any) -> torch.Tensor:
    """Logits of the next token, (rows, tokens), from what a model returned."""
    logits = _logits(output)
    return logits[:, -1] if logits.ndim == 3 else logits


def _logits(output: Any) -> torch.Tensor:
    """The logits in what a model returned."""
    if hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, torch.Tensor):
        raise ValueError(f"the model returned a {type(output).__name__}; logits are expected")
    return output


def _device_of(model: Model) -> torch.device:
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else iter(())
    return next((parameter.device for parameter in parameters), torch.device("cpu"))


@contextmanager
def _in_eval_mode(model: Model) -> Iterator[None]:
    """A module in eval mode; afterwards every part of it is in the mode that it had."""
    if not isinstance(model, torch.nn.Module):
        yield
        return
    training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
