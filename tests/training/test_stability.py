"""What tracking.stability logs, against the same quantities computed with plain matrices, under every engine."""

from __future__ import annotations

import math

import pytest
import torch

from tests.engines import common
from tests.ranks import run_ranks
from upscale import engines
from upscale.distributed.world import World
from upscale.model import parametrization
from upscale.model.transformer import ProgressiveBlock
from upscale.training.stability import ROWS, Observer

KINDS = {f"stage {stage}": {"engine__zero_stage": stage} for stage in (0, 1, 3)}
KINDS["fsdp"] = {"engine__name": "fsdp"}


def config(**changes: object):
    return common.config(**{"model__qk_norm": "true", "engine__precision": "fp32", **changes})


def model_with_gates(chosen) -> torch.nn.Module:
    """Gates of 0.5 and rising, so that every block counts."""
    model = parametrization.build(chosen)
    with torch.no_grad():
        for index, block in enumerate(model.blocks):
            if isinstance(block, ProgressiveBlock):
                block.gate.fill_(0.5 + index)
    return model


def observe(world: World, kinds: dict[str, dict]) -> dict[str, dict]:
    found = {}
    for label, kind in kinds.items():
        chosen = config(**kind)
        model = model_with_gates(chosen)
        engine = engines.create(chosen, model, world)
        engine.train_mode(False)
        mine = common.global_rows(0)[world.rank * ROWS :]
        found[label] = Observer(model).observe(engine.logits, mine, 4, world)
    return found


@torch.no_grad()
def by_hand(rows: torch.Tensor, active: int) -> dict[str, list[float]]:
    """Every block's largest logit by loops over rows, heads and positions, and the size of what leaves it."""
    model = model_with_gates(config()).eval()
    heads, size = model.config.heads, model.config.width // model.config.heads
    x = model.token_embedding(rows[:, :-1].long()) + model.position_embedding(torch.arange(rows.shape[1] - 1))
    largest, activations = [], []
    for block in model.blocks[:active]:
        attention = (block.block if isinstance(block, ProgressiveBlock) else block).attention
        query, key, _ = attention.project_in(x).split(heads * size, dim=-1)
        best = -math.inf
        for row in range(len(rows)):
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                q = torch.nn.functional.layer_norm(query[row, :, part], (size,)) * attention.query_norm.weight
                k = torch.nn.functional.layer_norm(key[row, :, part], (size,)) * attention.key_norm.weight
                for position in range(len(q)):
                    best = max(best, (q[position] @ k[: position + 1].T).max().item() / math.sqrt(size))
        largest.append(best)
        x = block(x)
        activations.append(x.square().mean().sqrt().item())
    partition = model(rows[:, :-1], active).logsumexp(-1).square().mean().sqrt().item()
    return {"largest": largest, "activations": activations, "partition": partition}


@pytest.mark.parametrize("size", [1, 2])
def test_observed_numbers_are_those_of_plain_matrices(size):
    """Two plain and two progressive blocks of six are active; two rows a rank."""
    expected = by_hand(common.global_rows(0)[: ROWS * size], 4)
    for result in run_ranks(observe, size, KINDS):
        for label, found in result.items():
            assert found["attention_logit_maximum_per_block"] == pytest.approx(expected["largest"], rel=1e-4), label
            assert found["attention_logit_maximum"] == max(found["attention_logit_maximum_per_block"]), label
            assert found["activation_rms_per_block"] == pytest.approx(expected["activations"], rel=1e-4), label
            assert found["log_partition_rms"] == pytest.approx(expected["partition"], rel=1e-4), label
            assert found["gates"] == [2.5, 3.5], label


def test_nothing_stays_attached_and_compiled_blocks_are_seen():
    """A model whose blocks torch.compile has traced gives the same numbers, and still runs afterwards."""
    chosen, rows, world = config(), common.global_rows(0), World.single()
    plain, compiled = model_with_gates(chosen).eval(), model_with_gates(chosen).eval()
    for block in compiled.blocks:
        (block.block if isinstance(block, ProgressiveBlock) else block).compile(backend="eager")
    compiled(rows[:ROWS, :-1], 4)
    expected = Observer(plain).observe(plain, rows, 4, world)
    for key, value in Observer(compiled).observe(compiled, rows, 4, world).items():
        assert value == pytest.approx(expected[key], rel=1e-5), key
    assert not any(module._forward_hooks for module in plain.modules())
    torch.testing.assert_close(compiled(rows[:ROWS, :-1], 4), plain(rows[:ROWS, :-1], 4), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", ["llama", "prenorm"])
def test_rotary_attention_is_observed_as_it_is_multiplied(block):
    """The largest causal product of what attention says it multiplies, for every active block."""
    chosen, rows = config(model__block=block), common.global_rows(0)[:ROWS]
    model, expected = model_with_gates(chosen).eval(), []
    for inside in model.insides(4):

        def watch(attention, inputs):
            query, key, _ = attention.queries_keys_values(inputs[0])
            products = query @ key.transpose(-2, -1) * attention.scale
            later = torch.ones(products.shape[-2:], dtype=torch.bool).triu(1)
            expected.append(products.masked_fill(later, -math.inf).max().item())

        inside.attention.register_forward_pre_hook(watch)
    with torch.no_grad():
        model(rows[:, :-1], 4)
    for module in model.modules():
        module._forward_pre_hooks.clear()
    found = Observer(model).observe(model, rows, 4, World.single())
    assert found["attention_logit_maximum_per_block"] == pytest.approx(expected, rel=1e-5)
    assert found["gates"] == [2.5, 3.5] and len(found["activation_rms_per_block"]) == 4
