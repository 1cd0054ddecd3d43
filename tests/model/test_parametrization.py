"""The role table against the `mup` package, which is the oracle for initialisation, learning rate and weight decay."""

from __future__ import annotations

import mup
import pytest
import torch
from torch import nn

from tests import tiny
from tests.benchmarks.coordinate_check import WIDTHS, slopes
from upscale import config_files
from upscale.model import parametrization

BASE_WIDTH, WIDTH = 64, 256


def config(width: int, **changes: object):
    return tiny.config(model__width=width, mup__base_width=BASE_WIDTH, **changes)


def with_infinite_shapes(width: int):
    """Our model as `mup` sees it, from a base model and one of another width."""
    model, base, delta = (parametrization.build(config(w)) for w in (width, BASE_WIDTH, 2 * BASE_WIDTH))
    mup.set_base_shapes(model, base, delta=delta, rescale_params=False, do_assert=False)
    return model


def test_every_parameter_has_exactly_one_role():
    model = parametrization.build(config(64, model__qk_norm="true"), "meta")
    assert {parametrization.role_of(name) for name, _ in model.named_parameters()} == set(parametrization.ROLE_PATTERNS)
    with pytest.raises(LookupError, match="blocks.0.new.weight"):
        parametrization.role_of("blocks.0.new.weight")


@pytest.mark.parametrize("width", [32, BASE_WIDTH, WIDTH])
def test_learning_rate_and_weight_decay_equal_mup(width):
    """Against the groups that mup.MuAdamW makes of the same parameters."""
    model = with_infinite_shapes(width)
    oracle = mup.MuAdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    expected = {id(p): (group["lr"], group["weight_decay"]) for group in oracle.param_groups for p in group["params"]}
    seen = []
    for group in parametrization.parameter_groups(model, config(width)):
        for name in group.names:
            parameter = model.get_parameter(name)
            assert (group.learning_rate, group.weight_decay) == pytest.approx(expected[id(parameter)]), name
            seen.append(name)
    assert sorted(seen) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("role", ["embedding", "hidden", "output"])
def test_initial_scale_equals_mup(role):
    """mup.init.normal_ given the base model's standard deviation must give ours at four times the width; 2 % is over
    four standard errors of the smallest matrix here."""
    model, base = with_infinite_shapes(WIDTH), parametrization.build(config(BASE_WIDTH))
    for name, parameter in model.named_parameters():
        if parametrization.role_of(name) == role:
            at_base = parametrization.rule(
                role, base.get_parameter(name).shape, config(BASE_WIDTH).model, config(BASE_WIDTH).mup
            )
            ours, drawn = parameter.detach().std(), torch.empty_like(parameter)
            drawn.infshape = parameter.infshape
            mup.init.normal_(drawn, 0, at_base.standard_deviation)
            assert ours.item() == pytest.approx(drawn.std().item(), rel=0.02), name


def test_output_multiplier_equals_mup():
    """Against mup.MuReadout with the same weights."""
    model, base, delta = (nn.ModuleDict({"head": mup.MuReadout(w, 256)}) for w in (WIDTH, BASE_WIDTH, 2 * BASE_WIDTH))
    mup.set_base_shapes(model, base, delta=delta, rescale_params=False)
    head, x = model["head"], torch.randn(3, WIDTH)
    ours = parametrization.output_multiplier(config(WIDTH).model, config(WIDTH).mup)
    torch.testing.assert_close(head(x) - head.bias, ours * nn.functional.linear(x, head.weight))


def test_without_mup_every_learning_rate_is_the_same():
    groups = parametrization.parameter_groups(
        parametrization.build(config(WIDTH, mup__enabled="false"), "meta"), config(WIDTH, mup__enabled="false")
    )
    assert {(group.learning_rate, group.weight_decay) for group in groups} == {(1e-2, 0.1)}


def test_groups_follow_the_wake_up_groups():
    names = {
        g.wake_group: []
        for g in parametrization.parameter_groups(parametrization.build(tiny.config(), "meta"), tiny.config())
    }
    for group in parametrization.parameter_groups(parametrization.build(tiny.config(), "meta"), tiny.config()):
        names[group.wake_group] += group.names
    assert {name.split(".")[1] for name in names[1]} == {"2", "3"} and {name.split(".")[1] for name in names[2]} == {
        "4",
        "5",
    }


def test_weights_depend_on_the_seed_alone():
    one, same, other = (parametrization.build(tiny.config(run__seed=seed)) for seed in (1, 1, 2))
    pairs = list(zip(one.parameters(), same.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(one.head.weight, other.head.weight)


def test_coordinates_are_flat_over_widths_with_mup_and_not_without():
    """Coordinate check (Yang et al. 2022, section D.1): how mean absolute values before the norms and of the change in
    the logits grow with the width, as the slope in log-log over widths 64 to 1024, after four steps."""
    assert WIDTHS[0] == 64 and WIDTHS[-1] == 1024
    flat, steep = slopes(mup=True), slopes(mup=False)
    assert max(abs(slope) for slope in flat.values()) < 0.2, flat
    assert max(steep.values()) > 0.4, steep


def test_shipped_widths_keep_learning_rate_times_decay():
    for width in (384, 1024, 4096):
        chosen = config_files.load(None, [f"model.width={width}"]).resolved()
        groups = parametrization.parameter_groups(parametrization.build(chosen, "meta"), chosen)
        assert {round(group.learning_rate * group.weight_decay, 12) for group in groups} == {3e-6}
