"""The role table against the `mup` package, which is the oracle for initialisation, learning rate and weight decay."""

from __future__ import annotations

import mup
import pytest
import torch
from torch import nn

from tests import tiny
from tests.benchmarks.coordinate_check import WIDTHS, plain, slope, slopes
from upscale import optim
from upscale.config import files as config_files
from upscale.model import blocks, parametrization

BASE_WIDTH, WIDTH = 96, 384  # where 8/3 of the width, llama's hidden layer, is not rounded
BLOCKS = list(blocks.KINDS)


def config(width: int, **changes: object):
    return tiny.config(model__width=width, mup__base_width=BASE_WIDTH, **changes)


def with_infinite_shapes(width: int, **changes: object):
    """Our model as `mup` sees it, from a base model and one of another width."""
    model, base, delta = (parametrization.build(config(w, **changes)) for w in (width, BASE_WIDTH, 2 * BASE_WIDTH))
    mup.set_base_shapes(model, base, delta=delta, rescale_params=False, do_assert=False)
    return model


@pytest.mark.parametrize("block", BLOCKS)
def test_every_parameter_has_a_role_and_every_row_of_a_blocks_table_a_parameter(block):
    names, found = set(), set()
    for qk_norm in ("false", "true"):
        model = parametrization.build(config(64, model__block=block, model__qk_norm=qk_norm), "meta")
        found |= {parametrization.role_of(name, block) for name, _ in model.named_parameters()}
        names |= {name for name, _ in model.insides()[0].named_parameters()}
    assert names == set(blocks.KINDS[block].parameter_table)
    assert found == set(parametrization.ROLES)
    for name in ("blocks.0.new.weight", "new.weight", "attention_norm.weight"):
        with pytest.raises(LookupError, match=name):
            parametrization.role_of(name, block)


@pytest.mark.parametrize("block", BLOCKS)
def test_stacked_matrices_are_those_that_the_width_is_put_into_at_once(block):
    """Rows of each parameter of the attention's and the feed-forward layer's inputs, over what one matrix has."""
    chosen = config(WIDTH, model__block=block).model
    hidden = {"llama": 8 * WIDTH // 3}.get(block, 4 * WIDTH)
    rows = {"attention.project_in": WIDTH, "attention.project_out": WIDTH, "feedforward_in": hidden}
    inside = parametrization.build(config(WIDTH, model__block=block), "meta").insides()[0]
    for name, one in {**rows, "feedforward_out": chosen.width}.items():
        shape, table = inside.get_parameter(f"{name}.weight").shape, blocks.KINDS[block].parameter_table
        assert shape[0] == one * table[f"{name}.weight"].matrices, name


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("qk_norm", ["false", "true"])
@pytest.mark.parametrize("width", [48, BASE_WIDTH, WIDTH])
def test_learning_rate_and_weight_decay_equal_mup(width, qk_norm, block):
    """Against the groups that mup.MuAdamW makes of the same parameters."""
    changes = {"model__qk_norm": qk_norm, "model__block": block}
    model = with_infinite_shapes(width, **changes)
    oracle = mup.MuAdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    expected = {id(p): (group["lr"], group["weight_decay"]) for group in oracle.param_groups for p in group["params"]}
    seen = []
    for group in optim.parameter_groups(model, config(width, **changes)):
        for name in group.names:
            parameter = model.get_parameter(name)
            assert (group.learning_rate, group.weight_decay) == pytest.approx(expected[id(parameter)]), name
            seen.append(name)
    assert sorted(seen) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("role", ["embedding", "hidden", "output"])
def test_initial_scale_equals_mup(role, block):
    """mup.init.normal_ given the base model's standard deviation must give ours at four times the width; 2 % is over
    four standard errors of the smallest matrix here."""
    model = with_infinite_shapes(WIDTH, model__block=block)
    base = parametrization.build(config(BASE_WIDTH, model__block=block))
    for name, parameter in model.named_parameters():
        if parametrization.role_of(name, block) == role:
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
    groups = optim.parameter_groups(
        parametrization.build(config(WIDTH, mup__enabled="false"), "meta"), config(WIDTH, mup__enabled="false")
    )
    assert {(group.learning_rate, group.weight_decay) for group in groups} == {(1e-2, 0.1)}


def test_groups_follow_the_wake_up_groups():
    names = {
        g.wake_group: [] for g in optim.parameter_groups(parametrization.build(tiny.config(), "meta"), tiny.config())
    }
    for group in optim.parameter_groups(parametrization.build(tiny.config(), "meta"), tiny.config()):
        names[group.wake_group] += group.names
    assert {name.split(".")[1] for name in names[1]} == {"2", "3"} and {name.split(".")[1] for name in names[2]} == {
        "4",
        "5",
    }


@pytest.mark.parametrize("block", BLOCKS)
def test_parts_cover_every_parameter_once(block):
    """By the names of the modules, written out here; the head's bias is the head's, a query's norm the attention's."""
    model = parametrization.build(config(64, model__qk_norm="true", model__block=block), "meta")
    for name, _ in model.named_parameters():
        words = name.split(".")
        expected = {
            "token_embedding": "embeddings",
            "position_embedding": "embeddings",
            "final_norm": "norms",
            "head": "head",
        }.get(words[0]) or {
            "attention": "attention",
            "feedforward_in": "ff",
            "feedforward_out": "ff",
            "attention_norm": "norms",
            "feedforward_norm": "norms",
            "gate": "gates",
        }[words[3] if words[2] == "block" else words[2]]
        assert parametrization.part_of(name, block) == expected, name


def test_layer_decay_counts_steps_from_the_head():
    """Six blocks and 0.5: the head's rate as it was, the last block's halved, the embeddings' halved seven times; muP's
    ratios and weight decays stay."""
    plain, decayed = (
        {name: group for group in optim.parameter_groups(model, chosen) for name in group.names}
        for chosen in (config(WIDTH), config(WIDTH, optimizer__layer_decay=0.5))
        for model in [parametrization.build(chosen, "meta")]
    )
    for name, group in decayed.items():
        steps = {"head": 0, "token_embedding": 7, "position_embedding": 7}.get(name.split(".")[0])
        steps = 6 - int(name.split(".")[1]) if steps is None else steps
        assert group.learning_rate == pytest.approx(plain[name].learning_rate * 0.5**steps), name
        assert group.weight_decay == plain[name].weight_decay and group.wake_group == plain[name].wake_group


def test_frozen_parts_are_groups_of_their_own_without_rates():
    chosen = config(WIDTH, optimizer__freeze="[ff, embeddings]")
    for group in optim.parameter_groups(parametrization.build(chosen, "meta"), chosen):
        frozen = {parametrization.part_of(name) in ("ff", "embeddings") for name in group.names}
        assert frozen == {group.frozen}
        assert (group.learning_rate == group.weight_decay == 0) == group.frozen


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


@pytest.mark.parametrize("block", [block for block in BLOCKS if block != "paper"])
def test_coordinates_are_flat_for_every_block(block):
    """The same check up to width 512 on rows of two token ids, and that without muP they are not."""
    found = {mup: [plain(width, mup, 2, model__block=block) for width in WIDTHS[:-1]] for mup in (True, False)}
    flat, steep = ({name: slope([one[name] for one in sizes]) for name in sizes[0]} for sizes in found.values())
    assert max(abs(value) for value in flat.values()) < 0.2, flat
    assert max(abs(value) for value in steep.values()) > 0.4, steep


def test_coordinates_are_flat_with_normalised_queries_and_keys():
    """The same check with model.qk_norm, up to width 512: heads of one size, so that 1/sqrt(k) for 1/k is no slope.

    The mean of three seeds: the slope of one scatters by 0.25 in the last block, whose gate has hardly opened."""
    found = []
    for seed in range(3):
        sizes = [plain(width, True, model__qk_norm="true", run__seed=seed) for width in WIDTHS[:-1]]
        found.append({name: slope([one[name] for one in sizes]) for name in sizes[0]})
    flat = {name: sum(one[name] for one in found) / len(found) for name in found[0]}
    assert max(abs(slope) for slope in flat.values()) < 0.2, flat


def test_shipped_widths_keep_learning_rate_times_decay():
    for width in (384, 1024, 4096):
        chosen = config_files.load(None, [f"model.width={width}"]).resolved()
        groups = optim.parameter_groups(parametrization.build(chosen, "meta"), chosen)
        assert {round(group.learning_rate * group.weight_decay, 12) for group in groups} == {3e-6}
