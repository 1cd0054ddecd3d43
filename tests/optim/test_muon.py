"""Muon against torch.optim.Muon, against singular values, and under both engines against a plain trainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.benchmarks.resume_matrix import Session
from tests.engines import common
from tests.ranks import run_ranks
from tests.reference.training import PlainMuon
from upscale import optim, planning
from upscale.config import files as config_files
from upscale.config.files import ConfigError
from upscale.coordcheck.coordinates import measure_plainly, slopes, steep
from upscale.coordcheck.widths import small
from upscale.distributed.world import World
from upscale.model import parametrization
from upscale.optim.muon import MOMENTUM, MuonAndAdamW, orthogonalized
from upscale.planning import memory

MUON = {"optimizer__kind": "muon", "engine__zero_stage": 0}
ZERO = {"zero 0": MUON}
FSDP = {"fsdp": {**MUON, "engine__name": "fsdp"}}
HYBRID = {"hybrid": {**MUON, "engine__name": "fsdp", "engine__shard_ranks": 2}}
WIDTHS = (64, 128, 256, 512)
LARGEST = 1e-5
"""Of a relative difference between losses after a resume in another world, as in tests/engines/test_elastic.py."""


def optimizer(matrices: int, precision: str, *shapes: tuple[int, int]) -> MuonAndAdamW:
    generator = torch.Generator().manual_seed(1)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    groups = [
        {"params": parameters, "lr": 0.03, "weight_decay": 0.1, "matrices": matrices},
        {"params": [torch.nn.Parameter(torch.zeros(3))], "lr": 0.01, "weight_decay": 0.0, "matrices": 0},
    ]
    return MuonAndAdamW(tiny.config(**MUON, engine__precision=precision), groups, torch.device("cpu"))


def test_whole_matrices_move_as_under_torchs_muon():
    """Three steps in bfloat16 of a tall, a wide and a square matrix, with its scale of steps for any shape; to two
    roundings of a float32, because the scale is multiplied in another order."""
    ours = optimizer(1, "bf16", (48, 16), (16, 48), (32, 32))
    muon, copies = ours.param_groups[0], []
    copies = [torch.nn.Parameter(parameter.detach().clone()) for parameter in muon["params"]]
    theirs = torch.optim.Muon(copies, lr=0.03, weight_decay=0.1, adjust_lr_fn="spectral_unclamped")
    for step in range(3):
        for parameter, copy in zip(muon["params"], copies, strict=True):
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
            copy.grad = parameter.grad.clone()
        ours.step()
        theirs.step()
    for parameter, copy in zip(muon["params"], copies, strict=True):
        torch.testing.assert_close(parameter, copy, rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize("shape", [(48, 16), (16, 48), (32, 32)])
def test_steps_in_float32_are_polynomials_of_the_singular_values(shape):
    """Against tests/reference/training.py, which takes the singular values apart."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    found = orthogonalized(matrix, 5, torch.float32)
    expected = PlainMuon([], 1, tiny.config(**MUON)).direction(matrix) / (shape[0] / shape[1]) ** 0.5
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6 and values.max() < 1.25
    assert not orthogonalized(torch.zeros(shape), 5, torch.float32).any()


def test_stacked_matrices_move_one_by_one():
    """Three matrices on top of each other as three parameters of their own."""
    stacked = optimizer(3, "fp32", (48, 16))
    single = optimizer(1, "fp32", (16, 16), (16, 16), (16, 16))
    [whole], parts = stacked.param_groups[0]["params"], single.param_groups[0]["params"]
    whole.grad = torch.randn(48, 16)
    for part, piece, gradient in zip(parts, whole.detach().chunk(3), whole.grad.chunk(3), strict=True):
        part.data.copy_(piece)
        part.grad = gradient.clone()
    stacked.step()
    single.step()
    assert torch.equal(whole, torch.cat(list(parts)))


@pytest.mark.parametrize("block", ["paper", "llama", "prenorm"])
def test_hidden_matrices_have_muons_rates_and_all_others_those_of_adamw(block):
    """Of a model twice as wide as mup.base_width, whose AdamW would halve the hidden matrices' learning rate."""
    changes = {"model__block": block, "model__width": 128}
    chosen = tiny.config(**MUON, **changes, optimizer__layer_decay=0.5, optimizer__freeze="[embeddings]")
    beside = tiny.config(**changes, optimizer__layer_decay=0.5, optimizer__freeze="[embeddings]")
    model = parametrization.build(chosen, "meta")
    adamw = {name: group for group in optim.parameter_groups(model, beside) for name in group.names}
    table = optim.parameter_groups(model, chosen)
    for group in table:
        for name in group.names:
            if parametrization.role_of(name, block) == "hidden":
                depth = 6 - int(name.split(".")[1])
                assert group.learning_rate == pytest.approx(0.02 * 0.5**depth) and group.weight_decay == 0.01
                assert group.matrices == parametrization.described(name, block).matrices
            else:
                other = adamw[name]
                assert group.matrices == 0 and group.frozen == other.frozen
                assert (group.learning_rate, group.weight_decay) == (other.learning_rate, other.weight_decay)
    assert sorted(name for group in table for name in group.names) == sorted(adamw)


@pytest.mark.parametrize("block", ["paper", "prenorm"])
def test_coordinates_are_flat_over_widths(block):
    """As tests/coordcheck/test_coordinates.py: one learning rate serves every width."""
    made = small(tiny.config(model__width=256, model__heads=8, model__block=block, **MUON), WIDTHS)
    found = slopes(WIDTHS, [measure_plainly(one, parametrization.build(one)) for one in made])
    assert not {name: one for name, one in found.items() if steep(name, one)}


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_losses_and_weights_equal_the_plain_trainer(size):
    """fp32, with accumulation, clipping and two wakings, replicated and sharded, unevenly over three ranks."""
    kinds = {**ZERO, **FSDP} if size < 4 else HYBRID
    per_rank = run_ranks(common.train_each, size, kinds)
    for label in kinds:
        common.assert_equals_plain_trainer([rank[label] for rank in per_rank], label, **MUON)


@pytest.mark.parametrize("block", ["llama", "prenorm"])
def test_other_blocks_equal_the_plain_trainer(block):
    kinds = {label: {**changes, "model__block": block} for label, changes in {**ZERO, **FSDP}.items()}
    per_rank = run_ranks(common.train_each, 2, kinds)
    for label in kinds:
        common.assert_equals_plain_trainer([rank[label] for rank in per_rank], label, **MUON, model__block=block)


def uninterrupted(world: World, folder: Path, changes: dict) -> list[float]:
    """Saves in step 10; the losses of ten further steps."""
    session = Session(world, folder, "fsdp", **changes)
    session.train(10)
    session.save()
    return session.train(10)


def resumed(world: World, folder: Path, engine: str, changes: dict) -> tuple[int, list[float], set[str]]:
    """Resumes, trains five steps and saves; the step it began with, the losses and the names of the states."""
    session = Session(world, folder, engine, **changes)
    begin, losses = session.counters.step, session.train(5)
    session.save()
    return begin, losses, {state for fragment in session.engine.fragments() for state in fragment.tensors}


def test_resuming_under_the_other_engine_and_world_changes_no_loss(tmp_path):
    """FSDP2 at two ranks, DeepSpeed at one, and back, against the run that goes on; blocks wake before and after."""
    changes = {"optimizer__kind": "muon", "model__block": "prenorm"}
    expected = run_ranks(uninterrupted, 2, tmp_path, changes)[0]
    [(begin, first, states)] = run_ranks(resumed, 1, tmp_path, "deepspeed-0", changes)
    assert begin == 10 and states == {"weight", "exp_avg", "exp_avg_sq", MOMENTUM}
    begin, second, _ = run_ranks(resumed, 2, tmp_path, "fsdp", changes)[0]
    assert begin == 15
    assert first + second == pytest.approx(expected, rel=LARGEST)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_flat_partitions_are_refused(stage):
    with pytest.raises(ConfigError, match=f"optimizer.kind: muon updates whole matrices, but .* stage {stage}"):
        config_files.load(None, ["optimizer.kind=muon", f"engine.zero_stage={stage}"])
    config_files.load(None, ["optimizer.kind=muon", f"engine.zero_stage={stage}", "engine.name=fsdp"])


def test_settings_of_another_optimizer_and_unknown_kinds_are_refused():
    with pytest.raises(ConfigError, match="optimizer.muon: is read with optimizer.kind=muon only"):
        config_files.load(None, ["optimizer.muon.momentum=0.9"])
    with pytest.raises(ConfigError, match="optimizer.kind: input should be 'adamw' or 'muon', given 'lion'"):
        config_files.load(None, ["optimizer.kind=lion"])


def test_states_and_flops_of_a_plan_by_hand():
    """w1024: one state for the 12 w^2 numbers of a block's matrices, two for the rest; five iterations."""
    chosen = config_files.load("configs/w1024.yaml", ["optimizer.kind=muon", "engine.zero_stage=0"]).resolved()
    matrices = chosen.model.depth * 12 * 1024**2
    assert memory.state_numbers(chosen) == 2 * planning.parameters(chosen.model) - matrices
    square, tall = 6 * 1024**3, 4 * 1024**2 * 4096 + 2 * 1024**3
    assert memory.optimizer_flops(chosen) == chosen.model.depth * 5 * (4 * square + 2 * tall)
