"""AdamW over a flat tensor in which several parameters lie, as in a partition, one of them frozen for a while."""

from __future__ import annotations

import torch

from tests import tiny
from upscale import optim
from upscale.model import parametrization

FIRST, STEPS = 3, 5


def one_group(groups: list, parts: tuple[str, ...], block: str) -> tuple[int, list[str]]:
    """The first group in which two parts lie, and a parameter of each."""
    for index, group in enumerate(groups):
        names = {parametrization.part_of(name, block): name for name in group.names}
        if set(parts) <= set(names):
            return index, [names[part] for part in parts]
    raise AssertionError(f"no group has {parts}")


def test_parts_of_a_flat_tensor_are_stepped_as_if_each_were_alone():
    """Against torch's own AdamW over two tensors, one of which had no gradient in the first steps."""
    config = tiny.config()
    model = parametrization.build(config, "meta")
    groups = optim.parameter_groups(model, config)
    index, names = one_group(groups, ("attention", "ff"), config.model.block)
    flat, draws = torch.nn.Parameter(torch.randn(12)), torch.Generator().manual_seed(1)
    groups[index].names = names
    tensors = {name: flat if name in names else torch.nn.Parameter(torch.zeros(1)) for g in groups for name in g.names}
    groups[index].names = names[:1]  # the flat tensor is one parameter of its group
    made = optim.create(config, groups, tensors, torch.device("cpu"))
    made.places[names[1]] = made.places[names[0]][0], "ff"
    made.pieces = lambda: [(names[0], flat, 0, 8), (names[1], flat, 8, 4)]
    apart = [torch.nn.Parameter(part.detach().clone()) for part in flat.split([8, 4])]
    settings = {"betas": tuple(config.optimizer.betas), "eps": config.optimizer.epsilon}
    rates = {"lr": groups[index].learning_rate, "weight_decay": groups[index].weight_decay}
    expected = torch.optim.AdamW(apart, **rates, **settings)
    for step in range(STEPS):
        gradient = torch.randn(12, generator=draws)
        if step == FIRST:  # as from a checkpoint: weights, moments and counters
            made.create_states()
            state, there = made.torch_optimizer.state[flat], expected.state[apart[0]]
            with torch.no_grad():
                flat.copy_(torch.cat([part.detach() for part in apart]))
                for name in ("exp_avg", "exp_avg_sq"):
                    state[name][:8] = there[name]
            group = made.places[names[0]][0]
            made.restore({**dict.fromkeys(made.steps_taken, FIRST), f"{group}/ff": 0})
        apart[0].grad, apart[1].grad = gradient[:8].clone(), gradient[8:].clone() if step >= FIRST else None
        expected.step()
        if step >= FIRST:
            flat.grad = gradient
            made.prepare(1.0, awake_groups=99)
            made.torch_optimizer.step()
            made.count(awake_groups=99)
            assert flat.grad is gradient
            torch.testing.assert_close(flat.detach(), torch.cat([part.detach() for part in apart]))
    assert made.counts()[group] == STEPS and made.counts()[f"{group}/ff"] == STEPS - FIRST
