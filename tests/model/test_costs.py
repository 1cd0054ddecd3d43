"""Parameters against the modules, FLOPs against torch's counter, a run's total against a walk over its instances."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests import tiny
from upscale import planning, schedule
from upscale.model import attention, blocks, costs, parametrization


@pytest.mark.parametrize("block", blocks.KINDS)
@pytest.mark.parametrize("qk_norm", ["false", "true"])
def test_parameters_are_those_of_the_modules(block, qk_norm):
    """Against named_parameters, of the model and of a block."""
    chosen = tiny.config(model__block=block, model__qk_norm=qk_norm, model__width=96).model
    model = parametrization.build(tiny.config(model__block=block, model__qk_norm=qk_norm, model__width=96), "meta")
    assert sum(parameter.numel() for _, parameter in model.named_parameters()) == planning.parameters(chosen)
    inside = dict(model.insides()[0].named_parameters())
    assert sum(parameter.numel() for parameter in inside.values()) == costs.block_parameters(chosen)
    matrices = sum(parameter.numel() for parameter in inside.values() if parameter.ndim == 2)
    assert chosen.depth * matrices == costs.matrix_parameters(chosen)


@pytest.mark.parametrize("block", blocks.KINDS)
@pytest.mark.parametrize("active", [2, 4, 6])
def test_flops_are_torchs_count(block, active, monkeypatch):
    """Of the forward pass; the backward pass has twice as many, and its recomputation is never counted (PaLM)."""
    monkeypatch.setattr(attention, "POSITIONS_BY_PRODUCTS", 0)  # fused, as on a GPU: on a CPU a quarter is left out
    chosen = tiny.config(model__width=64, model__block=block)
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
