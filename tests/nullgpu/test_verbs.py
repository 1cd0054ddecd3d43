"""The other verbs on the stand-in for a GPU: bench finds a micro-batch by running out of memory, sample draws, and a
model is fine-tuned on a corpus."""

from __future__ import annotations

import json

from tests.nullgpu import standin

SMALL = "model.width=384 model.context=64 model.depth=6 model.plain_blocks=4 model.group_blocks=1".split()


def test_bench_finds_a_micro_batch_by_running_out_of_memory(tmp_path):
    """Whose engine then makes room for the measured one: together they do not fit."""
    to = tmp_path / "bench.json"
    done = standin.run(
        ["bench", "--config", "configs/w384.yaml", "--steps", "1", "--warm-up", "1", "--to", str(to), *SMALL]
        + ["model.compile=false", f"run.dir={tmp_path / 'run'}"],
        tmp_path,
        timeout_seconds=900,
        memory_gib=1.2,
    )
    assert done.code == 0, done.output[-4000:]
    result = json.loads(to.read_text())
    assert result["micro_batch_found_by"] == "tried"
    assert 1 <= result["micro_batch"] < result["rows_per_rank"]
    assert done.reports[0].contexts == [0]


def test_sample_draws_on_the_gpu(tmp_path):
    done = standin.run(["sample", "--config", "configs/w384.yaml", "--rows", "2", "--rounds", "3"], tmp_path)
    assert done.code == 0, done.output[-4000:]
    assert done.reports[0].totals["launches"] > 0 and done.reports[0].contexts == [0]


def test_fine_tuning_reads_a_corpus(tmp_path):
    """The shipped config of the paper's fine-tuning at width 384, on a corpus made of the excerpt that ships."""
    corpus = tmp_path / "corpora/wp"
    prepared = standin.run(["prepare", "wp", "--from", "upscale/evaluation/texts/wp.xz", "--to", str(corpus)], tmp_path)
    assert prepared.code == 0, prepared.output[-4000:]
    settings = [*SMALL, "evaluation.every=0", "tracking.wandb=disabled", "run.steps=3", "engine.micro_batch=8"]
    settings += ["model.compile=false", f"run.dir={tmp_path / 'run'}", f"data.corpora=[{{path: {corpus}}}]"]
    done = standin.run(["train", "--config", "configs/finetune_wp.yaml", *settings], tmp_path, timeout_seconds=900)
    assert done.code == 0, done.output[-4000:]
    assert len(done.reports[0].steps("optimizer")) == 3 and done.reports[0].contexts == [0]
