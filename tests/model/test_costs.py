"""FLOPs against torch's own counter, and a run's total against a walk over its instances."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests import tiny
from upscale import planning, schedule
from upscale.model import parametrization


@pytest.mark.parametrize("active", [2, 4, 6])
def test_flops_are_torchs_count(active):
    """Of the forward pass; the backward pass has twice as many, and its recomputation is never counted (PaLM)."""
    chosen = tiny.config(model__width=64)
    model = parametrization.build(chosen)
    tokens = torch.zeros(3, chosen.model.context, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        model(tokens, active)
    assert 3 * counter.get_total_flops() == planning.flops_per_token(chosen.model, active) * tokens.numel()


def test_a_runs_flops_leave_out_sleeping_blocks():
    chosen = tiny.config()
    walked = sum(
        chosen.model.context
        * planning.flops_per_token(chosen.model, schedule.active_blocks(seen, chosen.schedule, chosen.model))
        for seen in range(chosen.schedule.instances)
    )
    assert planning.run_flops(chosen) == pytest.approx(walked, rel=1e-12)
    awake = tiny.config(schedule__wake_every=0)
    every = chosen.schedule.instances * chosen.model.context
    assert planning.run_flops(awake) == every * planning.flops_per_token(awake.model, awake.model.depth)
