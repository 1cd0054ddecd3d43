"""`upscale bench --compare`: results side by side, with ratios where they measure the same work on the same machine.

The engine, its settings, compilation, checkpointing, the number of ranks and versions may differ, they are what one
compares; the model, the precision, the rows of a rank and what writes them, and the machine may not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from upscale.bench.tables import engine_of
from upscale.console.text import aligned_table
from upscale.errors import UserError

SAME_MODEL = ("width", "depth", "heads", "context", "vocabulary", "dropout", "dropout_keys", "qk_norm")
SAME_MACHINE = ("device", "cpu", "cpus", "gpu")
QUANTITIES = {
    "tokens/s a device": ("tokens_per_second_per_device",),
    "generator rows/s": ("generator_rows_per_second",),
    **{f"{part} s": ("seconds", part) for part in ("step", "generate", "forward", "backward", "optimizer", "rest")},
}


def side_by_side(paths: Sequence[Path]) -> str:
    """Every result in a column, each after the first with its ratio to the first, or why there is none.

    A ratio's range is that of the lowest over the highest and the highest over the lowest step. Raises UserError for
    fewer than two files and for what `upscale bench` did not write.
    """
    if len(paths) < 2:
        raise UserError("--compare takes two files or more: the first is what the others are compared with")
    results = [read(path) for path in paths]
    reasons = [differences(results[0], result) for result in results]
    rows = []
    for label, way in (("engine", engine_of), ("ranks", lambda one: str(one["world_size"])), ("micro-batch", _passes)):
        rows.append([label, *(way(result) for result in results)])
    for label, keys in QUANTITIES.items():
        first = _at(results[0], keys)
        row = [label, f"{first['median']:,.4g}"]
        for result, reason in zip(results[1:], reasons[1:], strict=True):
            here = _at(result, keys)
            row.append(f"{here['median']:,.4g}" + ("" if reason else f"  {ratio(first, here)}"))
        rows.append(row)
    rows.append(["peak GiB", *(f"{result['peak_memory_gib']:.2f}" for result in results)])
    lines = [aligned_table(["", *(path.stem for path in paths)], rows, words=len(paths) + 1)]
    for path, reason in zip(paths, reasons, strict=True):
        if reason:
            lines.append(f"NOT COMPARABLE, so no ratio: {path} has another {'; another '.join(reason)}")
    return "\n".join(lines)


def read(path: Path) -> dict:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--compare {path} cannot be read: {error}") from None
    if not isinstance(result, dict) or result.get("kind") != "step":
        raise UserError(f"--compare {path} is no result of `upscale bench --config F --to FILE`")
    return result


def differences(one: dict, other: dict) -> list[str]:
    """Why the ratio of two results would mislead, as `what (here, there)`; empty when it would not."""
    pairs = {
        **{f"model.{key}": [result["config"]["model"].get(key) for result in (one, other)] for key in SAME_MODEL},
        "engine.precision": [result["config"]["engine"]["precision"] for result in (one, other)],
        "data.sources": [result["config"]["data"]["sources"] for result in (one, other)],
        "number of rows a rank": [result["rows_per_rank"] for result in (one, other)],
        **{f"machine: {key}": [result["machine"].get(key) for result in (one, other)] for key in SAME_MACHINE},
    }
    return [f"{name} ({here}, not {first})" for name, (first, here) in pairs.items() if first != here]


def ratio(first: dict[str, float], here: dict[str, float]) -> str:
    """`x1.50 (1.42 to 1.61)`, - where the first takes no time."""
    if not first["lowest"] or not first["median"]:
        return "-"
    low, high = here["lowest"] / first["highest"], here["highest"] / first["lowest"]
    return f"x{here['median'] / first['median']:.3f} ({low:.3f} to {high:.3f})"


def _passes(result: dict) -> str:
    return f"{result['micro_batch']} of {result['rows_per_rank']} rows"


def _at(result: dict, keys: Sequence[str]) -> dict[str, float]:
    for key in keys:
        result = result[key]
    return result
