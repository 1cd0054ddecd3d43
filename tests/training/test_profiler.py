"""The window of `tracking.profile`, through the training program: what it writes, and that it changes nothing."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.test_train import losses, train
from upscale.config import ProfileConfig
from upscale.distributed.world import World
from upscale.errors import UserError
from upscale.training.profiler import Profiler

QUICK = ["data.sources=[{kind: uniform}]", "model.dropout=0.1"]


def updates_in(trace: Path) -> int:
    """AdamW's own marks in a trace, one a step; at ZeRO 1 and 2 there would be one for each group."""
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    return sum(event.get("name", "").startswith("Optimizer.step#AdamW") for event in events)


def test_a_window_is_traced_across_a_resume_and_the_losses_stay_bit_equal(tmp_path):
    """Steps 2 to 4 are asked for, and the run is cut after step 3: both parts are there, and step 5 is not."""
    train(tmp_path / "plain", *QUICK, "run.steps=5")
    window = "tracking.profile={start: 2, steps: 3}"
    output = train(tmp_path / "profiled", *QUICK, window, "run.steps=3")
    assert f"profile of steps 2 to 3: {tmp_path}/profiled/profile/steps-00000002-00000003.rank0.json.gz" in output
    assert "profile of steps 4 to 4" in train(tmp_path / "profiled", *QUICK, window, "run.steps=5")
    found = sorted((tmp_path / "profiled" / "profile").iterdir())
    assert [path.name for path in found] == [
        "steps-00000002-00000003.rank0.json.gz",
        "steps-00000004-00000004.rank0.json.gz",
    ]
    assert [updates_in(path) for path in found] == [2, 1]
    assert losses(tmp_path / "profiled") == losses(tmp_path / "plain")


def test_every_rank_writes_its_own(tmp_path):
    for rank in range(2):
        profiler = Profiler(ProfileConfig(start=1, steps=1), tmp_path, World(rank, 2, torch.device("cpu"), "test"))
        profiler.begin(1)
        torch.ones(3).sum()
        assert "profile of steps 1 to 1" in profiler.end(1, leaving=False)
    assert len(list((tmp_path / "profile").glob("steps-00000001-00000001.rank[01].json.gz"))) == 2
    assert len(list((tmp_path / "profile").iterdir())) == 2


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{start: 0, steps: 1}", "tracking.profile.start: input should be greater than or equal to 1"),
        ("{start: 3}", "tracking.profile.steps: field required"),
        ("{start: 9, steps: 2}", "tracking.profile.start: 9 is after the last step, run.steps = 5"),
        ("{start: 1, steps: 2, ranks: 0}", "unknown key"),
        ("true", "tracking.profile"),
    ],
)
def test_mistakes_in_the_window_are_problems_of_the_config(value, message):
    with pytest.raises(UserError) as raised:
        tiny.config(run__steps=5, tracking__profile=value)
    assert message in str(raised.value)
