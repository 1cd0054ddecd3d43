"""Roles of parameters, and what follows from them; tests/coordcheck compares the numbers with the `mup` package."""

from __future__ import annotations

import pytest
import torch

from tests import tiny
from upscale import optim
from upscale.config import files as config_files
from upscale.model import blocks, parametrization

BASE_WIDTH, WIDTH = 96, 384  # where 8/3 of the width, llama's hidden layer, is not rounded
BLOCKS = list(blocks.KINDS)


def config(width: int, **changes: object):
    return tiny.config(model__width=width, mup__base_width=BASE_WIDTH, **changes)


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


def test_shipped_widths_keep_learning_rate_times_decay():
    for width in (384, 1024, 4096):
        chosen = config_files.load(None, [f"model.width={width}"]).resolved()
        groups = optim.parameter_groups(parametrization.build(chosen, "meta"), chosen)
        assert {round(group.learning_rate * group.weight_decay, 12) for group in groups} == {3e-6}
