"""The allocator's bytes on the stand-in for a GPU, which are those of a card."""

from __future__ import annotations

import json

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
