"""The table against its layout, written out by hand."""

from __future__ import annotations

from upscale.evaluation import table
from upscale.evaluation.table import learnt

RECORD = {
    "task": "dyck", "split": "generated", "bits_per_character": 0.98765, "standard_error": 0.01234,
    "markov_bits_per_character": 0.958, "markov_order": 3, "markov_published_bits_per_character": 1.0077,
    "markov_published_order": 3, "optimal_bits_per_character": 0.79096, "samples": 10_000, "skipped": None,
}  # fmt: skip


def test_table_layout():
    """Against the expected lines: aligned, plain, skipped texts below, and one line on how to read it."""
    text = RECORD | {"task": "wp", "split": "excerpt", "bits_per_character": None, "standard_error": None}
    text |= {"markov_bits_per_character": 12.5, "optimal_bits_per_character": None}
    german = dict.fromkeys(RECORD) | {"task": "german", "skipped": "no file"}
    lines = table([RECORD, text, german]).split("\n")
    assert lines[:4] == [
        "task  split           model      +-       Markov  Markov, published  optimum  slices",
        "dyck  generated      0.9877  0.0123   0.9580 (3)         1.0077 (3)   0.7910   10000",
        "wp    excerpt    not finite       -  12.5000 (3)         1.0077 (3)        -   10000",
        "german skipped: no file",
    ]
    assert lines[4].startswith("Bits per character, lower is better; uniform guessing is 8.") and len(lines) == 5


def test_what_was_learnt_as_lines():
    text = {"task": "wp", "positions": [1, 2], "bits_by_position": [8.0, 3.14159], "calibration_error": 0.25}
    found = {"distances": [4, 8], "induction_bits": [0.5, 8.0], "copy_accuracy": [1.0, 0.004], "texts": [text]}
    assert learnt(found | {"needle_recall": [1.0, 0.5, 0.25, None]}).split("\n") == [
        "repeated after      4     8",
        "induction, bits  0.50  8.00",
        "copied           100%    0%",
        "needles recalled, by distance in quarters of the row: 100%, 50%, 25%, -",
        "bits after so many characters     1     2  calibration error",
        "wp                             8.00  3.14              0.250",
    ]


def test_nothing_but_printable_characters():
    """Against terminals and files alike: no escape sequences, also for no records."""
    for records in ([RECORD], []):
        assert all(character.isprintable() or character == "\n" for character in table(records))
