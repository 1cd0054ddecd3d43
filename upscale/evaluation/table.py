"""Evaluation records as a plain-text table, the same on a terminal and in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from upscale.console.text import aligned_table

HEADINGS = ("task", "split", "model", "+-", "Markov", "Markov, published", "optimum", "slices")
READING = (
    "Bits per character, lower is better; uniform guessing is 8. Below Markov (in-context, order in brackets) a model "
    "learnt more from its context than counting does. The optimum knows grammar and state beforehand."
)


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """The records of `evaluate` as aligned lines, skipped ones below with their reason, and how to read the table.

    Without colours or control characters. A dash stands for a number there is not, "not finite" for a model whose
    logits were.
    """
    measured = [_row(record) for record in records if not record["skipped"]]
    lines = [aligned_table(HEADINGS, measured, words=2)]
    lines += [f"{record['task']} skipped: {record['skipped']}" for record in records if record["skipped"]]
    return "\n".join([*lines, READING])


def learnt(found: Mapping[str, Any]) -> str:
    """What `diagnostics.diagnose` found, as aligned lines: probes by distance, then each text by position."""
    probes = [
        ("induction, bits", *(f"{bits:.2f}" for bits in found["induction_bits"])),
        ("copied", *(f"{share:.0%}" for share in found["copy_accuracy"])),
    ]
    lines = [aligned_table(("repeated after", *map(str, found["distances"])), probes)]
    recall = ", ".join("-" if share is None else f"{share:.0%}" for share in found["needle_recall"])
    lines.append(f"needles recalled, by distance in quarters of the row: {recall}")
    if found["texts"]:
        heads = ("bits after so many characters", *map(str, found["texts"][0]["positions"]), "calibration error")
        rows = [
            (one["task"], *(f"{bits:.2f}" for bits in one["bits_by_position"]), f"{one['calibration_error']:.3f}")
            for one in found["texts"]
        ]
        lines.append(aligned_table(heads, rows))
    return "\n".join(lines)


def summary(records: Sequence[Mapping[str, Any]]) -> str:
    """The records of `evaluate` on one line: each task with the model's number."""
    measured = (record for record in records if not record["skipped"])
    skipped = [record["task"] for record in records if record["skipped"]]
    line = ", ".join(f"{record['task']} {_number(record['bits_per_character'])}" for record in measured)
    return line + (f" (skipped: {', '.join(skipped)})" if skipped else "")


def _row(record: Mapping[str, Any]) -> tuple[str, ...]:
    bits = record["bits_per_character"]
    return (
        record["task"],
        record["split"],
        "not finite" if bits is None else f"{bits:.4f}",
        _number(record["standard_error"]),
        _with_order(record["markov_bits_per_character"], record["markov_order"]),
        _with_order(record["markov_published_bits_per_character"], record["markov_published_order"]),
        _number(record["optimal_bits_per_character"]),
        str(record["samples"]),
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _with_order(bits: float, order: int) -> str:
    return f"{bits:.4f} ({order})"
