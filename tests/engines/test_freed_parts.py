"""A part that was frozen for some steps and is then trained: its bias correction begins when it does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.engines import common
from tests.ranks import run_ranks
from tests.reference.training import PlainTrainer
from upscale import engines
from upscale.checkpoint import manager, manifest
from upscale.checkpoint.reader import Reader
from upscale.checkpoint.writer import Writer, snapshot
from upscale.distributed.world import World
from upscale.engines import Fragment
from upscale.model import parametrization

ENGINES = {"fsdp": {"engine__name": "fsdp"}, **{str(stage): {"engine__zero_stage": stage} for stage in range(4)}}
FROZEN = "[attention, embeddings]"
FREED_AT, STEPS = 6, 10
"""Between the two steps, 4 and 8, at which blocks wake: one group has missed six steps, one two, and one none."""
ROUNDING = 5e-5
"""Of a loss after the freed part's first, large updates: 2e-5 was seen. The control below is above twice as much."""


def engine_of(world: World, **changes: object) -> tuple[engines.Engine, object]:
    config = common.config(**changes)
    return engines.create(config, parametrization.build(config), world), config


def losses(engine: engines.Engine, world: World, config, steps: range) -> list[float]:
    mine = {step: common.global_rows(step).tensor_split(world.size)[world.rank] for step in steps}
    return [common.train_step(engine, world, config, mine[step], step * common.BATCH)[0] for step in steps]


def save(world: World, folder: Path, engine: engines.Engine, **content: object) -> None:
    writer = Writer(folder, world, 3, asynchronous=False)
    content["counters"], content["milestone"] = {"step": FREED_AT, "instances": FREED_AT * common.BATCH}, False
    steps = {str(key): count for key, count in engine.steps_taken().items()}
    writer.save(snapshot(FREED_AT, engine.fragments(), {}, {"steps_taken": steps, **content}))
    assert writer.failure is None


def load(world: World, folder: Path, engine: engines.Engine) -> None:
    path, content = manifest.newest_valid(folder, world)
    manager.load_states(Reader(path, content), engine.fragments(), "paper")
    engine.loaded(manager.steps_taken(content))


def freeze_and_free(world: World, folder: Path, writer: str, readers: list[str], **changes: object) -> dict:
    """Losses of each reader's steps after a checkpoint of `writer`, and what it has counted at the end."""
    engine, config = engine_of(world, optimizer__freeze=FROZEN, **changes, **ENGINES[writer])
    found = {"frozen": losses(engine, world, config, range(FREED_AT))}
    save(world, folder, engine, counts_parts=True)
    for name in readers:
        engine, config = engine_of(world, **changes, **ENGINES[name])
        load(world, folder, engine)
        found[name] = losses(engine, world, config, range(FREED_AT, STEPS)), engine.steps_taken()
    return found


def plain(**changes: object) -> list[float]:
    """By torch's AdamW, which counts for each parameter the steps in which it had a gradient."""
    trainer, found = PlainTrainer(common.config(**changes)), []
    for step in range(STEPS):
        for name, parameter in trainer.model.named_parameters():
            frozen = parametrization.part_of(name) in ("attention", "embeddings")
            parameter.requires_grad_(step >= FREED_AT or not frozen)
        found.append(trainer.step(common.global_rows(step), step * common.BATCH))
    return found


@pytest.mark.parametrize(("size", "writer"), [(2, "fsdp"), (1, "1")])
def test_it_is_stepped_as_torchs_own_adamw_steps_it(tmp_path, size, writer):
    expected = plain()
    for found in run_ranks(freeze_and_free, size, tmp_path, writer, list(ENGINES)):
        assert found["frozen"] == pytest.approx(expected[:FREED_AT], rel=1e-6)
        for name in ENGINES:
            after, counted = found[name]
            assert after == pytest.approx(expected[FREED_AT:], rel=ROUNDING), name
            assert counted[0] == STEPS and counted["0/attention"] == STEPS - FREED_AT, (name, counted)
            assert counted[1] == STEPS - 4 and counted["1/attention"] == STEPS - FREED_AT
            assert counted[2] == STEPS - 8 and "2/attention" not in counted


def test_counting_from_the_groups_start_would_be_noticed(tmp_path):
    """The control: as before parts were counted, the first update of what was freed is many learning rates long."""
    found = run_ranks(forget_what_was_missed, 1, tmp_path)[0]
    assert abs(found / plain()[FREED_AT + 1] - 1) > 1e-4


def forget_what_was_missed(world: World, folder: Path) -> float:
    engine, config = engine_of(world, optimizer__freeze=FROZEN, **ENGINES["fsdp"])
    losses(engine, world, config, range(FREED_AT))
    save(world, folder, engine, counts_parts=True)
    engine, config = engine_of(world, **ENGINES["fsdp"])
    load(world, folder, engine)
    engine.loaded({group: steps for group, steps in engine.steps_taken().items() if isinstance(group, int)})
    return losses(engine, world, config, range(FREED_AT, FREED_AT + 2))[-1]


def test_an_old_checkpoint_counts_what_its_config_froze_from_the_start():
    content = {"steps_taken": {"0": 9, "1": 3}, "config": {"optimizer": {"freeze": ["head"]}}}
    assert manager.steps_taken(content) == {0: 9, 1: 3, "0/head": 0, "1/head": 0}
    assert manager.steps_taken({"steps_taken": {"0": 9}, "config": {"optimizer": {}}}) == {0: 9}


def test_muon_frozen_and_freed(tmp_path):
    """Its matrices keep their momentum's place while they are frozen; Muon has no bias to correct."""
    expected = plain(optimizer__kind="muon", engine__name="fsdp")
    found = run_ranks(freeze_and_free_muon, 1, tmp_path)[0]
    for name in ("fsdp", "0"):
        assert found[name][0] == pytest.approx(expected[FREED_AT:], rel=1e-4), name


def freeze_and_free_muon(world: World, folder: Path) -> dict:
    return freeze_and_free(world, folder, "fsdp", ["fsdp", "0"], optimizer__kind="muon")


def test_a_checkpoint_of_muon_from_before_frozen_matrices_had_momentum_loads(tmp_path):
    """Against the run that was frozen by this version; in between its files are made as the older one wrote them."""
    for found in run_ranks(load_without_momentum, 1, tmp_path):
        assert found["old"] == found["new"], found
        assert found["refused"], "a matrix that was not frozen must not lose its momentum"


def load_without_momentum(world: World, folder: Path) -> dict:
    changes, found = {"optimizer__kind": "muon", "engine__name": "fsdp"}, {}
    engine, config = engine_of(world, optimizer__freeze=FROZEN, **changes)
    losses(engine, world, config, range(FREED_AT))
    save(world, folder / "new", engine, counts_parts=True)
    old = [
        Fragment(one.name, one.offset, as_before(one) if "attention." in one.name else one.tensors)
        for one in engine.fragments()
    ]
    engine.fragments = lambda: iter(old)
    save(world, folder / "old", engine, config={"optimizer": {"freeze": ["attention", "embeddings"]}})
    save(world, folder / "other", engine, config={"optimizer": {"freeze": ["embeddings"]}})
    for name in ("new", "old"):
        engine, config = engine_of(world, **changes)
        losses(engine, world, config, range(2))  # so that it has momentum which must go
        load(world, folder / name, engine)
        found[name] = losses(engine, world, config, range(FREED_AT, STEPS))
    try:
        load(world, folder / "other", engine)
    except manifest.InvalidCheckpoint as error:
        found["refused"] = "momentum" in str(error)
    return found


def as_before(fragment: Fragment) -> dict[str, torch.Tensor]:
    """Frozen matrices had the states of AdamW then."""
    zeros = torch.zeros_like(fragment.tensors["weight"])
    return {"weight": fragment.tensors["weight"], "exp_avg": zeros, "exp_avg_sq": zeros}
