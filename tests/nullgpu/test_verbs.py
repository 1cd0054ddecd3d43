"""The other verbs on the stand-in for a GPU: bench finds a micro-batch by running out of memory, and sample draws."""

from __future__ import annotations

import json

import pytest

from tests.nullgpu import standin


@pytest.mark.parametrize(("width", "memory_gib"), [(384, 3.5), (1024, 20.0)])
def test_bench_finds_a_micro_batch_by_running_out_of_memory(width, memory_gib, tmp_path):
    """Of a shipped config. The engine that tried then makes room for the measured one: together they do not fit."""
    to, config = tmp_path / "bench.json", f"configs/w{width}.yaml"
    done = standin.run(
        ["bench", "--config", config, "--steps", "1", "--warm-up", "1", "--to", str(to), "model.compile=false"]
        + [f"run.dir={tmp_path / 'run'}"],
        tmp_path,
        timeout_seconds=900,
        memory_gib=memory_gib,
    )
    assert done.code == 0, done.output[-4000:]
    result = json.loads(to.read_text())
    assert result["micro_batch_found_by"] == "tried"
    assert 1 <= result["micro_batch"] < result["rows_per_rank"]
    assert done.reports[0].contexts == [0]


@pytest.mark.parametrize("width", [384, 1024])
def test_sample_draws_on_the_gpu(width, tmp_path):
    words = ["sample", "--config", f"configs/w{width}.yaml", "--rows", "2", "--rounds", "3"]
    done = standin.run(words, tmp_path)
    assert done.code == 0, done.output[-4000:]
    assert done.reports[0].totals["launches"] > 0 and done.reports[0].contexts == [0]
