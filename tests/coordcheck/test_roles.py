"""The table of roles against the `mup` package, the oracle for initialisation, learning rate and weight decay; and that
a model which does not keep to it is found."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests import tiny
from upscale.coordcheck import roles
from upscale.model import blocks, parametrization
from upscale.model.blocks import Parameter
from upscale.model.blocks.paper import PaperBlock

BASE_WIDTH = 96
WIDTHS = [48, BASE_WIDTH, 160, 384]  # at 160 llama's hidden layer, 8/3 of the width, is rounded
BLOCKS = list(blocks.KINDS)


def config(width: int = 384, **changes: object):
    shape = {"model__depth": 3, "model__width": width, "mup__base_width": BASE_WIDTH}
    return tiny.config(**shape, **changes)


def wrong(found: list[roles.Comparison]) -> set[tuple[str, str]]:
    return {(one.name, one.quantity) for one in found if one.deviates}


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("qk_norm", ["false", "true"])
def test_every_parameter_equals_mup(block, qk_norm):
    chosen = config(model__block=block, model__qk_norm=qk_norm)
    found = roles.compare(chosen, WIDTHS)
    assert not wrong(found)
    names = [name for name, _ in parametrization.build(chosen, "meta").named_parameters()]
    kinds = {one.name for one in found} - {"logits"}
    assert {tuple(name.split(".")[-2:]) for name in names if "gate" not in name} == {
        tuple(name.split(".")[-2:]) for name in kinds - {"blocks.*.gate"}
    }
    expected = {(name, width) for name in kinds for width in WIDTHS}
    for quantity in (roles.STANDARD_DEVIATION, roles.LEARNING_RATE, roles.WEIGHT_DECAY):
        assert {(one.name, one.width) for one in found if one.quantity == quantity} == expected
    assert [one.width for one in found if one.quantity == roles.OUTPUT_MULTIPLIER] == WIDTHS


def test_numbers_are_those_of_the_table_of_roles():
    """Four times the base width: a quarter of the rate, four times the decay, half the deviation, for hidden ones."""
    found = {(one.name, one.quantity, one.width): one for one in roles.compare(config(), WIDTHS)}
    for quantity, factor in ((roles.LEARNING_RATE, 1 / 4), (roles.WEIGHT_DECAY, 4), (roles.STANDARD_DEVIATION, 1 / 2)):
        hidden, base = (found["blocks.*.feedforward_in.weight", quantity, width] for width in (384, BASE_WIDTH))
        assert hidden.expected == pytest.approx(base.ours * factor, rel=1e-5)
        embedding, base = (found["token_embedding.weight", quantity, width] for width in (384, BASE_WIDTH))
        assert embedding.expected == pytest.approx(base.ours, rel=1e-5)


def test_without_mup_what_grows_is_named():
    found = wrong(roles.compare(config(mup__enabled="false"), WIDTHS))
    hidden = {
        f"blocks.*.{name}" for name, parameter in PaperBlock.parameter_table.items() if parameter.role == "hidden"
    }
    rates = {(name, quantity) for name in hidden for quantity in (roles.LEARNING_RATE, roles.WEIGHT_DECAY)}
    others = {("logits", roles.OUTPUT_MULTIPLIER), ("head.weight", roles.STANDARD_DEVIATION)}
    assert found == rates | others


@pytest.mark.parametrize("role", ["embedding", "output", "bias"])
def test_a_matrix_with_another_role_is_found(role, monkeypatch):
    changed = {**PaperBlock.parameter_table, "feedforward_in.weight": Parameter(role, "ff")}
    monkeypatch.setattr(PaperBlock, "parameter_table", changed)
    found = wrong(roles.compare(config(), WIDTHS))
    assert {name for name, _ in found} == {"blocks.*.feedforward_in.weight"}


def test_a_head_with_another_role_is_found(monkeypatch):
    monkeypatch.setitem(parametrization.SKELETON, "head.weight", Parameter("hidden", "head"))
    assert {name for name, _ in wrong(roles.compare(config(), WIDTHS))} == {"head.weight"}


def test_muon_compares_what_adamw_trains():
    chosen = config(optimizer__kind="muon", engine__zero_stage=0)
    found = roles.compare(chosen, WIDTHS)
    assert not wrong(found)
    with_rates = {one.role for one in found if one.quantity == roles.LEARNING_RATE}
    assert with_rates == set(parametrization.ROLES) - {"hidden"}


@pytest.mark.parametrize("block", BLOCKS)
def test_what_is_drawn_has_the_standard_deviation_of_the_table(block):
    chosen = config(model__block=block, model__qk_norm="true")
    found = roles.drawn(chosen, parametrization.build(chosen))
    assert not wrong(found)
    assert {one.role for one in found} == set(parametrization.ROLES)


def test_a_weight_that_is_drawn_otherwise_is_found():
    model = parametrization.build(config())
    with torch.no_grad():
        model.get_parameter("blocks.1.feedforward_out.weight").mul_(1.1)
        model.get_parameter("blocks.2.gate").fill_(0.5)
        model.get_parameter("blocks.0.attention_norm.weight")[7] = 1.5
    assert {name for name, _ in wrong(roles.drawn(config(), model))} == {
        "blocks.*.feedforward_out.weight",
        "blocks.*.gate",
        "blocks.*.attention_norm.weight",
    }


def test_a_difference_beyond_its_tolerance_deviates():
    one = roles.Comparison("a", "hidden", 64, roles.LEARNING_RATE, 1.0, 1.0 + 2e-5)
    assert one.deviates and not dataclasses.replace(one, tolerance=1e-4).deviates
