"""The record of a logged step: its file, its readers, and the table of its fields in docs/architecture.md."""

from __future__ import annotations

import json
import re

import pydantic
import pytest

from tests.docs import markdown
from upscale.evaluation.record import EvaluationRecord
from upscale.training.record import StepRecord, read_steps

FULL = StepRecord(
    step=20,
    instances=640,
    tokens=40_960,
    loss_bits_per_byte=7.25,
    learning_rate=1e-4,
    global_batch=32,
    active_blocks=2,
    grad_norm=None,
    step_seconds=0.5,
    generate_seconds=0.125,
    draw_seconds=0.25,
    checkpoint_blocking_seconds=0.0,
    tokens_per_second=4096.0,
    tokens_per_second_per_device=2048.0,
    model_flops_utilization=0.375,
    peak_memory_gib=12.5,
    world_size=2,
    skipped_steps=1,
    spikes=0,
)
OLDEST = {"step": 1, "instances": 32, "loss_bits_per_byte": 8.0}


@pytest.mark.parametrize(("file", "kind"), [("metrics.jsonl", StepRecord), ("evaluations.jsonl", EvaluationRecord)])
def test_the_table_in_the_docs_is_that_of_the_class(file, kind):
    text = (markdown.ROOT / "docs/architecture.md").read_text()
    section = text.partition(f"\n### {file}\n")[2].partition("\n#")[0]
    table = "\n".join(f"| `{name}` | {field.description} |" for name, field in kind.model_fields.items())
    assert f"| field | meaning |\n|---|---|\n{table}\n" in section


def test_a_written_record_is_read_back_with_the_fields_that_were_given(tmp_path):
    written = FULL.as_object()
    assert "gates" not in written and written["grad_norm"] is None
    (tmp_path / "metrics.jsonl").write_text(json.dumps(written) + "\n")
    assert read_steps(tmp_path / "metrics.jsonl") == [FULL]


@pytest.mark.parametrize("extra", [{}, {"field_of_another_version": [1]}])
def test_lines_of_other_versions_are_read_and_a_torn_last_one_is_left_out(tmp_path, extra):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(OLDEST | extra) + '\n{"step": 2, "inst')
    (record,) = read_steps(tmp_path / "metrics.jsonl")
    assert record.as_object() == OLDEST
    assert record.rows_per_second is None and record.generate_share is None
    assert record.time_left_text(100) == "unknown"


def test_no_file_holds_no_steps(tmp_path):
    assert read_steps(tmp_path / "metrics.jsonl") == []


def test_a_field_that_the_record_does_not_have_is_refused_when_it_is_made():
    with pytest.raises(pydantic.ValidationError, match="loss_per_bit"):
        StepRecord(**OLDEST, loss_per_bit=1.0)


@pytest.mark.parametrize(
    ("instances", "steps", "seconds"),
    [(1280, None, 10.0), (640, None, 0.0), (600, None, 0.0), (1280, 25, 2.5), (1280, 100, 10.0), (1280, 20, 0.0)],
)
def test_the_time_left_ends_with_the_rows_or_the_steps_whichever_come_first(instances, steps, seconds):
    assert FULL.seconds_left(instances, steps) == seconds


def test_the_console_line_names_what_matters():
    line = re.sub(r" +", " ", FULL.console_line(1280))
    assert line == (
        "step 20 640/1,280 rows loss 7.2500 bits/byte lr 1.00e-04 batch 32 blocks 2 4,096 tokens/s "
        "generating 25.0 % MFU 37.5 % skipped 1 ETA 0:00:10"
    )
    assert "loss not finite" in FULL.model_copy(update={"loss_bits_per_byte": None}).console_line(1280)
