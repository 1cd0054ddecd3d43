"""A short soak, each kind of fault once under FSDP2; `python -m tests.soak` does the long one."""

from __future__ import annotations

import json

import pytest

from tests.soak.__main__ import Journal
from tests.soak.faults import KINDS
from tests.soak.invariants import Reference, problems
from tests.soak.soak import ENGINES, Limits, Round

FEW = ("kill_a_rank", "start_two", "flip", "storm", "move_the_run")


def check(folder, kinds: tuple[str, ...], limits: Limits) -> None:
    run = Round(folder / "round", "1", limits)
    try:
        steps = run.live({kind: KINDS[kind] for kind in kinds}, len(kinds), lambda _record: None)
        assert not problems(run, Reference(folder / "reference", limits), steps)
    except AssertionError:
        print(run.output())
        raise
    finally:
        run.clear()
    assert sorted(record["kind"] for record in run.happened) == sorted(kinds)


def test_a_few_faults_cost_nothing_but_time(tmp_path):
    """Against a run of one rank without faults: rows, losses, evaluations, follow-ups, and nothing left behind."""
    check(tmp_path, FEW, Limits.on_this_machine(2, ENGINES[:1], small_disk=False))


@pytest.mark.slow
def test_every_kind_of_fault_under_every_engine(tmp_path):
    check(tmp_path, tuple(KINDS), Limits.on_this_machine(3, ENGINES, small_disk=True))


def test_the_journal_counts_rounds_that_ended(tmp_path):
    """A soak that was cut off in round 2 lives it again; its faults from before do not count."""
    journal = Journal(tmp_path / "journal.jsonl")
    fault = {"kind": "flip", "step": 3, "shape": (1, "engine.name=fsdp")}
    ended = {"steps": 5, "starts": 1, "restarts": 1, "refused_starts": 0, "damaged_checkpoints": 1, "seconds": 9}
    ended |= {"loss_difference": 1e-7, "problems": []}
    journal.add("fault", round=1, index=1, **fault)
    journal.add("round", round=1, faults=1, **ended)
    journal.add("fault", round=2, index=1, **fault)
    with open(journal.path, "a") as file:
        file.write(json.dumps({"event": "fault"})[:9])
    assert (journal.faults(), journal.next_round()) == (1, 2)
    assert journal.summary()["kinds"] == {"flip": 1} and journal.summary()["worlds"] == [1]
