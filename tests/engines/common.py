"""What the tests of both engines share: a training run over any world, and the plain trainer's run of the same rows."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from tests import tiny
from tests.reference.training import PlainTrainer
from upscale import engines, schedule
from upscale.checkpoint.writer import snapshot
from upscale.config import Config
from upscale.coordcheck import coordinates
from upscale.coordcheck.coordinates import Coordinate
from upscale.coordcheck.widths import small
from upscale.distributed.world import World
from upscale.model import parametrization
from upscale.model.transformer import row_losses

STEPS, BATCH, CONTEXT = 12, 12, 16
COORDINATE_WIDTHS = (64, 128, 256, 512)
TOLERANCE = 2e-3
"""How far a parameter may lie from the plain trainer's, as a share of its way from the start. Rounding alone makes 1e-5
of it, and 7e-4 where it pushes a pre-activation across a ReLU's kink, which happened for one of 16 seeds."""


def config(**changes: object) -> Config:
    """Adam's epsilon lies far above what rounding does to a gradient: those of a new block are 1e-9, and
    with the default of 1e-8 Adam would make whole steps of their rounding."""
    return tiny.config(**{"optimizer__epsilon": 1e-4, **changes})


def global_rows(step: int) -> torch.Tensor:
    return torch.randint(0, 256, (BATCH, CONTEXT + 1), generator=torch.Generator().manual_seed(step)).to(torch.uint8)


def train_step(
    engine: engines.Engine, world: World, config: Config, rows: torch.Tensor, seen: int, poisoned: bool = False
) -> tuple[float, engines.StepReport]:
    """One step on this rank's `rows` of the batch, in micro-batches of two filled up with rows of weight zero.

    Returns the global loss in nats per token; `poisoned` makes this rank's share of it NaN.
    """
    active = schedule.active_blocks(seen, config.schedule, config.model)
    passes = math.ceil(math.ceil(BATCH / world.size) / 2)
    weights = torch.zeros(2 * passes)
    weights[: len(rows)] = math.nan if poisoned else 1 / (BATCH * CONTEXT)
    rows = torch.cat([rows, rows[:1].expand(2 * passes - len(rows), -1)])
    total = torch.zeros(())
    engine.train_mode(True)
    for index, (part, weight) in enumerate(zip(rows.split(2), weights.split(2), strict=True)):
        loss = (row_losses(engine.logits(part[:, :-1], active), part[:, 1:]) * weight).sum()
        engine.backward(loss, last=index == passes - 1)
        total += loss.detach()
    factor = schedule.learning_rate_factor(seen, config.schedule)
    report = engine.step(factor, schedule.awake_groups(seen, config.schedule))
    return world.all_reduce_sum(total).item(), report


def train(world: World, config: Config, steps: int = STEPS, poison: int | None = None, compiled: bool = False) -> dict:
    """Train on `global_rows`; blocks 2-3 wake at step 4, blocks 4-5 at step 8.

    At step `poison` the last rank's loss is NaN. Returns losses, reports, the steps taken, copies of the fragments at
    the end and of those that slept at step 3, and what of the former this rank would save.
    """
    model = parametrization.build(config)
    if compiled:
        model.compile_blocks()
    engine = engines.create(config, model, world)
    found = {"losses": [], "reports": []}
    for step in range(steps):
        mine = global_rows(step).tensor_split(world.size)[world.rank]
        poisoned = step == poison and world.rank == world.size - 1
        loss, report = train_step(engine, world, config, mine, step * BATCH, poisoned)
        found["losses"].append(loss)
        found["reports"].append(report)
        if step == 3:
            found["asleep"] = copies(engine, "blocks.4", "blocks.5")
    saved = snapshot(steps, engine.fragments(), {}, {}).parameters
    found["saved"] = {name: (offset, len(tensors["weight"])) for name, (offset, tensors) in saved.items()}
    return {**found, "end": copies(engine, ""), "steps": engine.steps_taken()}


def train_each(world: World, kinds: dict[str, dict], *how: object) -> dict[str, dict]:
    """`train` for every labelled set of changes to the config, one after the other in the same processes."""
    return {label: train(world, config(**changes), *how) for label, changes in kinds.items()}


def copies(engine: engines.Engine, *prefixes: str) -> dict:
    chosen = (f for f in engine.fragments() if f.name.startswith(prefixes))
    return {f.name: (f.offset, {key: tensor.clone() for key, tensor in f.tensors.items()}) for f in chosen}


def sizes(**changes: object) -> dict[str, int]:
    return {name: p.numel() for name, p in parametrization.build(config(**changes), "meta").named_parameters()}


def whole(results: list[dict], state: str, **changes: object) -> dict[str, torch.Tensor]:
    """Parameters put together from every rank's fragments; where several hold an element, theirs must be equal."""
    found = {name: torch.full((size,), math.nan) for name, size in sizes(**changes).items()}
    for result in results:
        for name, (offset, tensors) in result["end"].items():
            here = found[name][offset : offset + len(tensors[state])]
            assert torch.equal(here[~here.isnan()], tensors[state][~here.isnan()]), name
            here.copy_(tensors[state])
    return found


def assert_equals_plain_trainer(results: list[dict], label: str, **changes: object) -> None:
    """Losses to 1e-6, weights to TOLERANCE, counters, sleeping parameters, and every element saved exactly once.

    `changes` are those of the config that the plain trainer shares with the engine.
    """
    losses, weights = plain_run(**changes)
    for result in results:
        worst = max(abs(here - there) / there for here, there in zip(result["losses"], losses, strict=True))
        assert worst <= 1e-6, f"{label}: losses differ by {worst:.2e}"
        assert result["steps"] == {0: STEPS, 1: STEPS - 4, 2: STEPS - 8}, label
        assert all(report.applied for report in result["reports"]), label
        assert result["reports"] == results[0]["reports"], label
    initial = {name: p.detach() for name, p in parametrization.build(config(**changes)).named_parameters()}
    for name, value in whole(results, "weight", **changes).items():
        apart, moved = (value - weights[name]).norm(), (weights[name] - initial[name].view(-1)).norm()
        assert apart <= TOLERANCE * moved, f"{label}: {name} differs by {apart / moved:.1e} of its way"
    for result in results:
        for name, (offset, tensors) in result["asleep"].items():
            here = initial[name].view(-1)[offset : offset + len(tensors["weight"])]
            assert torch.equal(tensors["weight"], here), f"{name} changed while asleep: {label}"
            states = [tensor for state, tensor in tensors.items() if state != "weight"]
            assert states and not any(tensor.any() for tensor in states), label
    for name, size in sizes(**changes).items():
        saved = torch.zeros(size)
        for result in results:
            offset, length = result["saved"].get(name, (0, 0))
            saved[offset : offset + length] += 1
        assert (saved == 1).all(), f"{label}: {name} is not saved exactly once"


def assert_skipped(results: list[dict], label: str) -> None:
    """After ten steps with number 5 poisoned: it counts on no rank, and the run goes on."""
    for result in results:
        assert [report.applied for report in result["reports"]] == [step != 5 for step in range(10)], label
        assert result["reports"][5].gradient_norm == math.inf, label
        assert result["steps"] == {0: 9, 1: 5, 2: 2}, label
        assert all(math.isfinite(loss) for step, loss in enumerate(result["losses"]) if step != 5), label


@functools.cache
def plain_run(**changes: object) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and final flat weights of tests/reference/training.py in fp32."""
    trainer = PlainTrainer(config(**changes))
    losses = [trainer.step(global_rows(step), step * BATCH) for step in range(STEPS)]
    return losses, {name: p.detach().view(-1) for name, p in trainer.model.named_parameters()}


def coordinate_configs(**changes: object) -> list[Config]:
    """What the coordinate check trains: two plain blocks and a progressive one, at COORDINATE_WIDTHS."""
    return small(tiny.config(model__width=128, model__heads=4, mup__base_width=128, **changes), COORDINATE_WIDTHS)


def slopes_without_engine() -> dict[str, Coordinate]:
    made = coordinate_configs()
    return coordinates.slopes(
        COORDINATE_WIDTHS, [coordinates.measure_plainly(one, parametrization.build(one)) for one in made]
    )


def slopes_under(world: World, changes: dict) -> dict[str, Coordinate]:
    """Slopes of the coordinate check, trained by the engine; the forward runs on the sharded model."""

    def measure(chosen: Config) -> dict[str, Coordinate]:
        model = parametrization.build(chosen)
        engine, depth = engines.create(chosen, model, world), chosen.model.depth

        def train(batch: torch.Tensor) -> None:
            mine = batch.tensor_split(world.size)[world.rank]
            losses = row_losses(engine.logits(mine[:, :-1], depth), mine[:, 1:])
            engine.backward(losses.sum() / (coordinates.ROWS * chosen.model.context), last=True)
            engine.step(1.0, 2**31)

        return coordinates.measure(model, lambda tokens: engine.logits(tokens, depth), train)

    return coordinates.slopes(COORDINATE_WIDTHS, [measure(chosen) for chosen in coordinate_configs(**changes)])


def assert_slopes_equal(found: dict[str, Coordinate], expected: dict[str, Coordinate]) -> None:
    """And flat, so that muP's learning rates survive flattening and partitioning."""
    assert found.keys() == expected.keys()
    for name, one in found.items():
        assert (one.size, one.change) == pytest.approx((expected[name].size, expected[name].change), abs=0.05), name
        assert not coordinates.steep(name, one), (name, one)
