"""Weights at the start: the same bits whoever holds which part, and never a whole model where it is sharded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.benchmarks.resume_matrix import Session
from tests.engines import common
from tests.ranks import run_ranks
from upscale import engines
from upscale.checkpoint.manager import Saver
from upscale.distributed.world import World
from upscale.model import blocks, parametrization
from upscale.training import train_step

KINDS = {f"stage {stage}": {"engine__zero_stage": stage} for stage in range(4)} | {"fsdp": {"engine__name": "fsdp"}}


def started(world: World, kinds: dict[str, dict]) -> dict[str, dict]:
    """Of every engine that builds its model by itself: fragments, and the logits that its working weights give."""
    found = {}
    for label, changes in kinds.items():
        config = common.config(**changes)
        _, engine = train_step.build(config, world)
        found[label] = {"end": common.copies(engine, "")}
        engine.train_mode(False)
        with torch.no_grad():
            found[label]["logits"] = engine.logits(common.global_rows(0)[:, :-1], 6)
    return found


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_weights_are_the_same_bits_under_every_engine_in_every_world(ranks):
    """Against the whole model drawn at once; also of blocks whose buffers are no parameters."""
    others = {"llama": {"model__block": "llama"}, "prenorm": {"model__block": "prenorm"}} if ranks == 2 else {}
    kinds = KINDS | {
        f"{engine}, {block}": {**KINDS[engine], **changes}
        for engine in ("stage 3", "stage 1", "fsdp")
        for block, changes in others.items()
    }
    per_rank = run_ranks(started, ranks, kinds)
    for label, changes in kinds.items():
        model = parametrization.build(common.config(**changes)).eval()
        whole = common.whole([rank[label] for rank in per_rank], "weight", **changes)
        for name, parameter in model.named_parameters():
            assert torch.equal(whole[name], parameter.detach().view(-1)), f"{label} {name}"
        with torch.no_grad():
            expected = model(common.global_rows(0)[:, :-1], 6)
        for rank in per_rank:
            torch.testing.assert_close(rank[label]["logits"], expected, atol=1e-6, rtol=1e-5, msg=label)


@pytest.mark.parametrize("block", list(blocks.KINDS))
def test_a_model_with_only_shapes_lacks_nothing_but_its_parameters(block):
    """Buffers follow from the config; an engine fills parameters alone."""
    config = common.config(model__block=block)
    shapes, model = parametrization.build(config, "meta"), parametrization.build(config)
    assert all(parameter.is_meta for parameter in shapes.parameters())
    for (name, empty), (same, full) in zip(shapes.named_buffers(), model.named_buffers(), strict=True):
        assert name == same and torch.equal(empty, full)


def started_and_resumed(world: World, folder: Path, kinds: list[str]) -> list[tuple[dict, dict]]:
    """Fragments at the start of a run and after it was saved, built anew without weights, and resumed."""
    found = []
    for kind in kinds:
        session = Session(world, folder / kind, kind)
        session.save()
        before = common.copies(session.engine, "")
        _, engine = train_step.build(session.config, world, initialized=False)
        with pytest.MonkeyPatch.context() as patch:
            patch.delattr(engines, "initialize")
            Saver(session.config, folder / kind, world, engine, session.lanes).resume()
        found.append((before, common.copies(engine, "")))
    return found


def test_a_run_that_goes_on_draws_no_weights(tmp_path):
    kinds = ["deepspeed-0", "deepspeed-1", "deepspeed-3", "fsdp"]
    for kind, (before, after) in zip(kinds, run_ranks(started_and_resumed, 1, tmp_path, kinds)[0], strict=True):
        assert before.keys() == after.keys()
        for name, (offset, tensors) in before.items():
            assert after[name][0] == offset
            assert all(torch.equal(tensor, after[name][1][key]) for key, tensor in tensors.items()), (kind, name)
