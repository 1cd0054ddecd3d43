"""The records of evaluations: what evaluations.jsonl and diagnostics.jsonl hold, and reports and studies read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from upscale.files import Record, read_records


class EvaluationRecord(Record):
    """One task at one step. A field's docstring is its line in docs/architecture.md.

    The fields without a default are in every file; the others are None in files from before they were known.
    """

    step: int
    """optimizer steps before it"""
    instances: int
    """rows seen before it"""
    task: str
    """task or text"""
    split: str | None = None
    """`generated`, `excerpt` (a shipped text), `data_dir` (the user's file), or the split of a prepared corpus"""
    bits_per_character: float | None
    """the model's; null where skipped or not finite"""
    standard_error: float | None = None
    """of that mean"""
    markov_bits_per_character: float | None = None
    """the in-context Markov baseline, corrected form"""
    markov_order: int | None = None
    """its order"""
    markov_published_bits_per_character: float | None = None
    """the same in the published form"""
    markov_published_order: int | None = None
    """its order"""
    optimal_bits_per_character: float | None = None
    """where it is known"""
    samples: int | None = None
    """slices measured"""
    group_bits_per_character: list[float] | None = None
    """means of twenty stretches, by which two models are compared"""
    digest: str | None = None
    """of the text, so that only equal texts are compared"""
    skipped: str | None = None
    """why it was not measured; else null"""

    @property
    def key(self) -> tuple[str, str]:
        """The task and its split: ("dyck", "generated")."""
        return self.task, self.split or ""


def read_evaluations(path: Path) -> list[EvaluationRecord]:
    """The records of an evaluations.jsonl; none where the file is missing.

    Of two of one task, split and step the later line counts. A last line without its end is left out. Raises ValueError
    naming file, line and field of any other damage.
    """
    return list({(record.key, record.step): record for record in read_records(path, EvaluationRecord)}.values())


Place = Annotated[int, Field(ge=1, le=2**40)]
"""Bytes back, or characters before."""


class TextDiagnostics(Record):
    """What `diagnostics.of_text` finds on one text."""

    task: str
    """text or task"""
    split: str | None = None
    """as in evaluations.jsonl"""
    positions: list[Place]
    """characters before the target, from which each stretch begins"""
    bits_by_position: list[float]
    """mean bits of each stretch"""
    calibration_error: float
    """mean distance between the probability of the most likely byte and how often it is right"""
    calibration_counts: list[int]
    """targets of each of equal bins of that probability"""
    calibration_confidence: list[float]
    """their mean probability"""
    calibration_accuracy: list[float]
    """the share of them that was right"""

    @model_validator(mode="after")
    def lists_fit(self) -> TextDiagnostics:
        _same_length(self, "positions", "bits_by_position")
        _same_length(self, "calibration_counts", "calibration_confidence", "calibration_accuracy")
        return self


class DiagnosticsRecord(Record):
    """What one `upscale evaluate --diagnostics` finds; `upscale/evaluation/diagnostics.py` defines each."""

    step: int
    """optimizer steps before it"""
    instances: int
    """rows seen before it"""
    distances: list[Place]
    """bytes after which a row of random bytes repeats"""
    induction_bits: list[float]
    """for each: bits of the repeated bytes"""
    copy_accuracy: list[float]
    """for each: the share that was the model's best guess"""
    needle_recall: list[float | None]
    """share of values found by their key, by distance in quarters of the row; null where none lay"""
    texts: list[TextDiagnostics]
    """for each text: bits by position, and calibration in ten bins"""

    @model_validator(mode="after")
    def lists_fit(self) -> DiagnosticsRecord:
        _same_length(self, "distances", "induction_bits", "copy_accuracy")
        return self


def _same_length(record: Record, *fields: str) -> None:
    lengths = {field: len(getattr(record, field)) for field in fields}
    if len(set(lengths.values())) > 1:
        raise ValueError("lists of different lengths: " + ", ".join(f"{name} {n}" for name, n in lengths.items()))


def read_diagnostics(path: Path) -> list[DiagnosticsRecord]:
    """The records of a diagnostics.jsonl, steps rising; none where the file is missing.

    Of two of one step the later line counts. Raises ValueError as `read_evaluations` does.
    """
    newest = {record.step: record for record in read_records(path, DiagnosticsRecord)}
    return [newest[step] for step in sorted(newest)]
