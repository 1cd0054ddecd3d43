"""A short soak: four faults on at most two ranks. `python -m tests.soak` does the long one."""

from __future__ import annotations

import pytest

from tests.soak.soak import ENGINES, Soak, problems


def test_four_faults_cost_nothing_but_time(tmp_path):
    """Against a run of one rank without faults: rows, losses, and nothing left behind."""
    summary = Soak(tmp_path, seed=1, faults=4, minutes=60, most_ranks=2, engines=ENGINES[:1]).run()
    assert not problems(summary), summary
    assert summary["faults"] >= 4 and summary["restarts"] >= 1


@pytest.mark.slow
def test_every_kind_of_fault_under_every_engine(tmp_path):
    summary = Soak(tmp_path, seed=2, faults=12, minutes=60, most_ranks=3, engines=ENGINES).run()
    assert not problems(summary), summary
    assert len(summary["kinds"]) == 7 and summary["damaged_checkpoints"] >= 3
