"""The whole evaluation: choose datasets by name, measure a model on them, put the baselines beside it."""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from upscale.distributed.world import World
from upscale.evaluation.compression import Interrupted, Measurement, Predict, Progress, measure, target_positions
from upscale.evaluation.dataset import Dataset, EvaluationError
from upscale.evaluation.markov import MarkovBaseline, in_context
from upscale.evaluation.tasks import CHARACTERS, GENERATED, TASKS, TEXTS

NAMES = tuple(TASKS)


def check_names(names: Literal["all"] | Sequence[str]) -> list[str]:
    """The names in the order given, each once; "all" means every task and text.

    Raises EvaluationError (a ValueError) that lists every unknown name with its nearest, and the allowed ones.
    """
    if names == "all" or list(names) == ["all"]:
        return list(NAMES)
    given = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    unknown = [name for name in given if name not in NAMES]
    if unknown:
        hints = []
        for name in unknown:
            near = difflib.get_close_matches(str(name), NAMES, 1, 0.4)
            hints.append(f"{name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
        raise EvaluationError(f"evaluation.tasks has no {', '.join(hints)}; allowed are all, {', '.join(NAMES)}")
    if not given:
        raise EvaluationError(f"evaluation.tasks is empty; allowed are all, {', '.join(NAMES)}")
    return given


def datasets(
    names: Literal["all"] | Sequence[str] = "all",
    *,
    data_dir: str | Path | None = None,
    split: str = "validation",
    characters: int = CHARACTERS,
    seed: int = 0,
) -> list[Dataset]:
    """The tasks, generated (at least `characters` each, the same for the same seed), and the texts, read.

    `split` is the held-out split that is used of prepared corpora in `data_dir`.

    Call it once per process: it costs about two seconds. Raises EvaluationError as `check_names` and `TextTask.load`.
    """
    return [
        TEXTS[name].load(data_dir, split=split) if name in TEXTS else GENERATED[name].load(characters, seed=seed)
        for name in check_names(names)
    ]


def evaluate(
    predict: Predict,
    datasets: Sequence[Dataset],
    *,
    slices: int,
    context: int,
    world: World,
    batch_rows: int,
    progress: Progress | None = None,
    seed: int = 0,
    requested: Callable[[], bool] | None = None,
) -> list[dict[str, Any]]:
    """A record of every dataset, on every rank, for `predict` (logits of the next token, see `compression.Predict`).

    Each dataset contributes `slices` slices of `context` characters, or all there are if fewer. All ranks call this
    with the same arguments and get the same records, one a dataset: task, split, bits_per_character, standard_error,
    markov_bits_per_character and markov_order (corrected form), markov_published_bits_per_character and
    markov_published_order, optimal_bits_per_character, samples, group_bits_per_character and the string's digest (by
    which two models are compared on the same slices), skipped (a reason, else None). Numbers are null and groups empty
    where skipped; bits per character is null where the model's was not finite.

    Targets depend on the seed and the length of the string only, so evaluations of a run are paired, and baselines, on
    the same targets, are computed once a process. Raises EvaluationError for a slices, context or batch_rows that is
    too small, and when the ranks were given different datasets; Interrupted, on every rank, soon after `requested` (was
    this rank asked to stop?) has become true on one.
    """
    for name, value, least in (("slices", slices, 1), ("context", context, 2), ("batch_rows", batch_rows, 1)):
        if value < least:
            raise EvaluationError(f"evaluation: {name} is {value}, it must be at least {least}")
    chosen = [dataset for dataset in datasets if _reason(dataset, context) is None]
    baselines = _baselines(chosen, (slices, context, seed), batch_rows, world, progress, requested)
    measurements = measure(
        predict,
        [dataset.data for dataset in chosen],
        [_positions(dataset, slices, context, seed) for dataset in chosen],
        context=context,
        world=world,
        batch_rows=batch_rows,
        labels=[dataset.name for dataset in chosen],
        progress=progress,
        requested=requested,
    )
    results = iter(zip(measurements, baselines, strict=True))
    return [_record(dataset, context, *(() if _reason(dataset, context) else next(results))) for dataset in datasets]


def _reason(dataset: Dataset, context: int) -> str | None:
    if dataset.skipped is None and len(dataset.data) < context:
        return f"only {len(dataset.data)} characters: a slice needs {context}"
    return dataset.skipped


def _positions(dataset: Dataset, slices: int, context: int, seed: int) -> np.ndarray:
    return target_positions(len(dataset.data), context=context, slices=slices, seed=seed)


@functools.lru_cache(maxsize=64)
def _baseline(dataset: Dataset, slices: int, context: int, seed: int) -> MarkovBaseline:
    return in_context(dataset.data, _positions(dataset, slices, context, seed), context=context)


def _baselines(
    chosen: Sequence[Dataset],
    slicing: tuple[int, int, int],
    batch_rows: int,
    world: World,
    progress: Progress | None,
    requested: Callable[[], bool] | None,
) -> list[MarkovBaseline]:
    """Every dataset's baseline on every rank; rank r computes datasets r, r + size, ... and one exchange spreads them.

    The same exchange checks that the ranks agree: otherwise their numbers of forwards would differ and hang the run.
    """
    mine, asked = {}, False
    for index in range(world.rank, len(chosen), world.size):
        if asked := requested is not None and requested():
            break
        mine[index] = _baseline(chosen[index], *slicing)
        if progress is not None:
            progress(index + 1, len(chosen), f"Markov baseline of {chosen[index].name}")
    agreed = (slicing, batch_rows, [(dataset.name, dataset.digest) for dataset in chosen])
    everyone = world.gather_objects((agreed, mine, asked))
    for rank, (theirs, _, _) in enumerate(everyone):
        if theirs != everyone[0][0]:
            raise EvaluationError(
                f"rank {rank} was given other datasets or settings to evaluate than rank 0: {theirs} against "
                f"{everyone[0][0]}. evaluation.data_dir must hold the same files on every node."
            )
    if any(asked for _, _, asked in everyone):
        raise Interrupted
    merged = {index: baseline for _, part, _ in everyone for index, baseline in part.items()}
    return [merged[index] for index in range(len(chosen))]


def _record(
    dataset: Dataset,
    context: int,
    measurement: Measurement | None = None,
    markov: MarkovBaseline | None = None,
) -> dict[str, Any]:
    record: dict[str, Any] = {
        "task": dataset.name,
        "split": dataset.split,
        "bits_per_character": None,
        "standard_error": None,
        "markov_bits_per_character": None,
        "markov_order": None,
        "markov_published_bits_per_character": None,
        "markov_published_order": None,
        "optimal_bits_per_character": dataset.optimal_bits_per_character,
        "samples": None,
        "group_bits_per_character": [],
        "digest": dataset.digest[:16],
        "skipped": _reason(dataset, context),
    }
    if measurement and markov:
        groups = measurement.groups
        record |= {
            "bits_per_character": _finite(measurement.bits_per_character),
            "standard_error": _finite(measurement.standard_error),
            "markov_bits_per_character": markov.corrected.bits_per_character,
            "markov_order": markov.corrected.order,
            "markov_published_bits_per_character": markov.published.bits_per_character,
            "markov_published_order": markov.published.order,
            "samples": measurement.samples,
            "group_bits_per_character": [round(bits, 5) for bits in groups] if math.isfinite(sum(groups)) else [],
        }
    return record


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
