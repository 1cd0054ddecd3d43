"""The allocator's bytes on the stand-in for a GPU, which are those of a card."""

from __future__ import annotations

import json

import pytest

from tests.nullgpu import standin


def test_an_engine_that_is_closed_gives_its_memory_back(tmp_path):
    """So that a bench may build another one: ZeRO 1 to 3 kept all of it. A twentieth is left at most."""
    done = standin.run([str(standin.HERE / "build_and_close.py")], tmp_path, timeout_seconds=900, watched=False)
    assert done.code == 0, done.output[-4000:]
    found = json.loads(done.output.strip().splitlines()[-1])
    assert set(found) == {"stage 0", "stage 1", "stage 2", "stage 3", "fsdp"}
    for kind, turns in found.items():
        for before, held, after in turns:
            assert held - before > 50e6, (kind, turns)
            assert after - before < 0.05 * (held - before), (kind, turns)


@pytest.mark.parametrize(
    "starts",
    [
        ["w1024:stage 0", "w1024:stage 1", "w1024:stage 3", "w2048:stage 2", "w2048:fsdp", "w4096:stage 3"],
        pytest.param(["w1024:fsdp", "w2048:stage 3", "w4096:fsdp"], marks=pytest.mark.slow),
    ],
)
def test_a_start_needs_no_more_than_training_holds(starts, tmp_path):
    """Of 8 ranks, the first: at most 1.2 of its weights, moments and gradients on the device, where stage 3 once had a
    whole model. On the host, which once had a model a rank: hardly anything, but at stage 3 its share of the weights,
    which DeepSpeed moves to the host and back so that they lie without gaps."""
    done = standin.run([str(standin.HERE / "start_up.py"), *starts], tmp_path, timeout_seconds=900, watched=False)
    assert done.code == 0, done.output[-4000:]
    found = json.loads(done.output.strip().splitlines()[-1])
    for start in starts:
        assert found[start]["device"] <= 1.2 * found[start]["state"], (start, found[start])
        share = found[start]["model"] / 8 if "stage 3" in start else 0
        assert found[start]["host"] <= share + 0.02 * found[start]["model"], (start, found[start])
