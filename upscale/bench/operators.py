"""Where a training step's time goes, operator by operator, and how near its matrix products are to their own limit.

Time is torch's profiler's, of one step more: in an operator itself, without those that it calls. The limit of a product
is the speed of the same product alone, with operands in the run's precision that lie one after the other in memory: no
step can be faster than its products by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from upscale.bench.machine import seconds

PRODUCTS: dict[str, Callable[..., torch.Tensor]] = {
    "aten::mm": torch.mm,
    "aten::addmm": torch.addmm,
    "aten::bmm": torch.bmm,
    "aten::baddbmm": torch.baddbmm,
}
SHOWN = 16
REPEATS = 3
REST = "everything else"


def measure(step: Callable[[], object], dtype: torch.dtype, device: torch.device) -> dict:
    """`step_seconds`, the sum over operators of one call of `step`; `products_alone_seconds`, what its products take by
    themselves; and `operators`, the SHOWN that take longest and the rest, each with name, calls, seconds and share, and
    where it is a product also its floating-point operations, `alone_seconds`, and both speeds in FLOP/s.
    """
    on_gpu = device.type == "cuda"
    with profile(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])],
        record_shapes=True,
        with_flops=True,
        acc_events=True,
    ) as profiler:
        step()
    found: dict[str, dict] = {}
    for event in profiler.key_averages(group_by_input_shape=True):
        if event.device_type != torch.autograd.DeviceType.CPU:  # a kernel, which its operator has counted
            continue
        mine = found.setdefault(event.key, {"name": event.key, "calls": 0, "seconds": 0.0})
        mine["calls"] += event.count
        mine["seconds"] += (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
        if event.key in PRODUCTS:
            alone = event.count * _alone(event.key, event.input_shapes, dtype, device)
            mine["alone_seconds"] = mine.get("alone_seconds", 0.0) + alone
            mine["flops"] = mine.get("flops", 0) + event.flops
    return _summed(sorted(found.values(), key=lambda one: -one["seconds"]))


def _alone(name: str, shapes: list[list[int]], dtype: torch.dtype, device: torch.device) -> float:
    """The shortest time of a product of operands of these shapes."""
    operands = [torch.randn(shape, dtype=dtype, device=device) for shape in shapes if len(shape)]
    return min(seconds({name: partial(PRODUCTS[name], *operands)}, REPEATS, device)[name])


def _summed(operators: list[dict]) -> dict:
    total = sum(one["seconds"] for one in operators)
    products = [one for one in operators if "flops" in one]
    shown = [one for place, one in enumerate(operators) if place < SHOWN or one in products]
    others = [one for one in operators if one not in shown]
    rest = {
        "name": REST,
        "calls": sum(one["calls"] for one in others),
        "seconds": sum(one["seconds"] for one in others),
    }
    for one in products:
        one["flops_per_second"] = one["flops"] / one["seconds"]
        one["alone_flops_per_second"] = one["flops"] / one["alone_seconds"]
    rows = [{**one, "share": one["seconds"] / total} for one in (*shown, rest)]
    alone = sum(one["alone_seconds"] for one in products)
    return {"step_seconds": total, "products_alone_seconds": alone, "operators": rows}
