"""The plan's bytes against the allocator's on the stand-in, and what a run is told that has too few of them."""

from __future__ import annotations

import json
import re

import pytest

from tests.nullgpu import standin
from tests.nullgpu.one_rank import PASSES

EAGER = "model.compile=false"
ENGINES = ("deepspeed", "fsdp")
FEW = [
    *(f"8 16 w1024 engine.zero_stage={stage} {EAGER}" for stage in range(4)),
    f"8 16 w2048 engine.name=fsdp {EAGER}",
    f"8 8 w4096 engine.name=fsdp {EAGER}",
]
MANY = [
    *(f"8 16 w2048 engine.name=deepspeed engine.zero_stage={stage} {EAGER}" for stage in (1, 2)),
    f"8 16 w1024 engine.name=fsdp {EAGER}",
    f"8 8 w4096 engine.name=deepspeed engine.zero_stage=3 {EAGER}",
    f"64 8 w4096 engine.name=fsdp engine.shard_ranks=8 {EAGER}",
    "8 16 w1024 engine.zero_stage=1",
    *(f"8 16 w1024 engine.name={name} model.block={block}" for name in ENGINES for block in ("llama", "prenorm")),
    "8 16 w2048 engine.name=deepspeed engine.zero_stage=2",
    "8 16 w2048 engine.name=fsdp",
    "8 8 w4096 engine.name=fsdp",
]


@pytest.mark.parametrize("cases", [pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.slow)])
def test_real_peaks_are_those_of_the_plan(cases, tmp_path):
    """Within 10 %, one rank of many at its full width and depth; and the allocator reserves hardly more than that.
    A step waits for the device twice at most, at stage 3 once more after each backward pass."""
    program = [str(standin.HERE / "one_rank.py"), *cases]
    done = standin.run(program, tmp_path, timeout_seconds=3000, watched=False)
    assert done.code == 0, done.output[-4000:]
    found = [json.loads(line) for line in done.output.splitlines() if line.startswith('{"case"')]
    assert [one["case"] for one in found] == cases
    for one in found:
        assert one["peak"] == pytest.approx(one["planned"], rel=0.1), one
        assert one["reserved"] < (1.1 if "stage=0" in one["case"] else 1.05) * one["peak"], one
        at_stage_3 = "stage=3" in one["case"]
        assert 1 <= one["waits"] <= 2 + at_stage_3 * PASSES, one
        # Stage 3 steps its partitions in parts of a billion numbers: w 4096 has two, and 110 launches.
        assert 0 < one["optimizer_launches"] <= (120 if at_stage_3 else 100), one


@pytest.mark.parametrize("how", [[], pytest.param(["compiled"], marks=pytest.mark.slow)], ids=["eager", "compiled"])
def test_a_block_saves_what_is_counted(how, tmp_path):
    """Against autograd's hooks on the GPU's own operations, tensor by tensor, without the weights themselves."""
    program = [str(standin.HERE / "saved_tensors.py"), *how]
    done = standin.run(program, tmp_path, timeout_seconds=3000, watched=False)
    assert done.code == 0, done.output[-4000:]
    found = [json.loads(line) for line in done.output.splitlines() if line.startswith('["')]
    assert len(found) == 24
    for name, saved, counted in found:
        assert saved == counted, name


def test_out_of_memory_ends_with_advice_that_fits(tmp_path):
    """Exit code 2, as for every config that cannot run here; and with the settings that it names the run finishes."""
    settings = ["evaluation.every=0", "checkpoint.every=0", "tracking.wandb=disabled", "run.steps=2"]
    settings += [
        EAGER,
        "schedule.wake_every=0",
        "schedule.batch.start=64",
        "engine.micro_batch=64",
        "engine.precision=bf16",
    ]
    arguments = ["upscale/train.py", "--config", "configs/w384.yaml", f"run.dir={tmp_path / 'run'}", *settings]
    done = standin.run(arguments, tmp_path, timeout_seconds=600, memory_gib=5.0)
    assert done.code == 2, done.output[-3000:]
    assert "cuda:0 is out of memory" in done.output and "Traceback" not in done.output
    given = re.search(r"Give ((?:[a-z]+\.[a-z_]+=\w+ ?)+)", done.output)
    assert given, done.output[-3000:]
    done = standin.run([*arguments, *given.group(1).split()], tmp_path, timeout_seconds=600, memory_gib=5.0)
    assert done.code == 0, done.output[-3000:]
