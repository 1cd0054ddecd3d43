"""What every source asks of a GPU for one draw of a rank's rows."""

from __future__ import annotations

import json

from tests.nullgpu import standin
from upscale.sources import KINDS

MOST_LAUNCHES = 2000
"""A draw's at most, of sources that write on the GPU by default; docs/sources.md has the table."""


def test_no_source_launches_more_than_a_step_can_hide(tmp_path):
    """Those that do are written by processes on the CPU by default, and none of the others is."""
    done = standin.run([str(standin.HERE / "draw_sources.py")], tmp_path, timeout_seconds=900, watched=False)
    assert done.code == 0, done.output[-4000:]
    found = json.loads(done.output.strip().splitlines()[-1])
    assert {name.split()[0] for name in found} == set(KINDS)
    for name, one in found.items():
        assert (one["launches"] > MOST_LAUNCHES) == one["workers"], (name, one)
