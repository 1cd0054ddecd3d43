"""The record of an evaluation: what evaluations.jsonl holds of one task at one step, and reports and studies read."""

from __future__ import annotations

from pathlib import Path

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
