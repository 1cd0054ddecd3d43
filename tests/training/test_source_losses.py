"""Targets that rows choose, and the loss of each source: against sums written out, and against one rank."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tests import tiny
from tests.engines import common
from tests.ranks import run_ranks
from tests.reference.training import PlainTrainer
from tests.test_train import metrics, train
from upscale import engines
from upscale.bench.plain import PlainPyTorch
from upscale.config import Config
from upscale.data import generation, training_rows
from upscale.data.lanes import NO_SOURCE, from_config, owned_lanes
from upscale.distributed.world import World
from upscale.errors import UserError
from upscale.model import parametrization
from upscale.training.source_losses import SourceLosses
from upscale.training.train_step import Microbatches

MIXTURE = (
    "[{kind: lists, task: set, items: 3, values: 9}, {kind: dyck, brackets: 4}, {kind: dyck, brackets: 9}, "
    "{kind: lstm, hidden: 8, weight: 0.2}]"
)


def config(**changes):
    return tiny.config(data__sources=MIXTURE, optimizer__z_loss=1e-2, **changes)


def step(world: World, settings=None) -> dict:
    """One step's loss and gradient on this rank's lanes after ten rounds, in micro-batches of two."""
    settings = settings or config()
    lanes = from_config(settings, owned_lanes(settings.data.lanes, world.rank, world.size), "cpu")
    for _ in range(10):
        rows = lanes.draw(1)
    model = parametrization.build(settings)
    run = Microbatches(settings, world, PlainPyTorch(model, None, 1.0), lanes.lanes[0], 2)
    losses = SourceLosses(settings, lanes.origins())
    share = run.backpropagate(rows, settings.data.lanes, settings.model.depth, 0, losses=losses)
    bits, fields = losses.reduce(share, world)
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    return {"bits": bits, **fields, "gradient": world.all_reduce_sum(gradient), "rows": rows, "of": lanes.origins()}


@pytest.mark.usefixtures("one_thread")
def test_a_step_is_the_mean_over_targets_and_each_source_has_its_own():
    """Against the plain trainer's loss, and against cross-entropies token by token."""
    found, settings = step(World.single()), config()
    rows, plain = found["rows"], PlainTrainer(config(schedule__wake_every=0))
    assert rows.dtype == torch.int16 and (rows < 0).any()
    logits = plain.model(torch.where(rows < 0, ~rows, rows)[:, :-1].long(), settings.model.depth)
    surprise = -F.log_softmax(logits, -1) / math.log(2)
    lost: dict[int, list[float]] = {}
    for row, origin, of_row in zip(rows.tolist(), found["of"].tolist(), surprise, strict=True):
        for place, token in enumerate(row[1:]):
            if token >= 0:
                lost.setdefault(origin, []).append(of_row[place, token].item())
    means = {origin: sum(each) / len(each) for origin, each in lost.items()}
    names = ["lists", "dyck 1", "dyck 2", "lstm"]
    expected = {names[origin]: mean for origin, mean in sorted(means.items()) if origin != NO_SOURCE}
    assert {"lists", "dyck 1"} <= set(expected)
    assert found["loss_bits_per_source"] == pytest.approx(expected, rel=1e-5)
    everything = sum(lost.values(), [])
    assert found["bits"] == pytest.approx(sum(everything) / len(everything), rel=1e-5)
    assert plain.step(rows, 0) / math.log(2) == pytest.approx(found["bits"], rel=1e-5)
    optimum = settings.data.sources[1].optimum(settings.model, 1)
    assert found["excess_bits_per_source"]["lists"] == found["loss_bits_per_source"]["lists"]
    assert found["excess_bits_per_source"]["dyck 1"] == pytest.approx(expected["dyck 1"] - optimum, rel=1e-5)
    assert "lstm" not in found["excess_bits_per_source"]


def test_targets_are_counted_over_all_ranks():
    """Against one rank: three ranks, whose rows have different numbers of targets, give its loss and its gradient."""
    alone, ranks = step(World.single()), run_ranks(step, 3)
    assert len({int((rank["rows"][:, 1:] >= 0).sum()) for rank in ranks}) > 1
    for rank in ranks:
        assert rank["bits"] == pytest.approx(alone["bits"], rel=1e-6)
        assert rank["loss_bits_per_source"] == pytest.approx(alone["loss_bits_per_source"], rel=1e-5)
        torch.testing.assert_close(rank["gradient"], alone["gradient"], rtol=1e-4, atol=1e-7)


ENGINES = {"stage 1": {"engine__zero_stage": 1}, "fsdp": {"engine__name": "fsdp"}}


def uneven(changes: dict) -> tuple[Config, torch.Tensor]:
    """Twelve rows of which the first eight have no target: all of rank 0's, and rank 1's first microbatch."""
    settings = common.config(schedule__wake_every=0, optimizer__z_loss=1e-2, data__sources=MIXTURE, **changes)
    rows = common.global_rows(0).to(torch.int16)
    read = torch.rand(rows.shape, generator=torch.Generator().manual_seed(1)) < torch.linspace(0.9, 0.3, 12)[:, None]
    read[:8] = True
    return settings, torch.where(read, ~rows, rows)


def step_of_engines(world: World) -> dict[str, dict]:
    """One step under each engine: this rank's share of the loss, and the weights that it holds afterwards."""
    found = {}
    for label, kind in ENGINES.items():
        settings, rows = uneven(kind)
        engine = engines.create(settings, parametrization.build(settings), world)
        lanes = owned_lanes(settings.data.lanes, world.rank, world.size)
        run = Microbatches(settings, world, engine, lanes[0], 2)
        share = run.backpropagate(rows[lanes[0] : lanes[-1] + 1], len(rows), settings.model.depth, 0)
        report = engine.step(0.5, 2**31)
        found[label] = {"share": share.item(), "applied": report.applied, "end": common.copies(engine, "")}
    return found


def test_a_rank_and_a_microbatch_without_a_target(one_thread):
    """Against the plain trainer on the whole batch, under both engines: the loss is the mean over its targets, and
    the update is that mean's."""
    results = run_ranks(step_of_engines, 2)
    settings, rows = uneven({})
    plain = PlainTrainer(settings)
    expected = plain.step(rows, settings.schedule.warmup // 2)
    begin = dict(parametrization.build(settings).named_parameters())
    for label in ENGINES:
        shares = [rank[label]["share"] for rank in results]
        assert shares[0] == 0 and sum(shares) == pytest.approx(expected, rel=1e-6), label
        assert all(rank[label]["applied"] for rank in results)
        weights = common.whole([rank[label] for rank in results], "weight")
        for name, parameter in plain.model.named_parameters():
            moved = (parameter - begin[name]).norm()
            assert (weights[name] - parameter.view(-1)).norm() <= common.TOLERANCE * moved, (label, name)


def test_rows_of_a_corpus_that_choose_targets(tmp_path):
    """Generated rows of 17 tokens whose last 8 are targets. From the twelfth token on, 5 are: their mean, against the
    plain trainer; of the first nine tokens none is, which is refused and not trained on with a loss of 0."""
    sources = "[{kind: lists, task: sort, items: 8, values: 9}]"
    written = tiny.config(data__sources=sources, data__buffer=1, data__reset="{constant: 0, noise: 0}")
    generation.generate(written, rows=30, to=tmp_path, processes=1)

    def reading(**changes) -> Config:
        return tiny.config(
            data__kind="corpus", data__corpora=f"[{{path: {tmp_path}}}]", schedule__wake_every=0, **changes
        )

    settings = reading(data__first_target=12)
    rows = training_rows.open_rows(settings)(range(12), "cpu").draw(1)
    assert (rows[:, 12:] >= 0).all() and (rows[:, 9:12] >= 0).all() and not (rows[:, :9] >= 0).any()
    plain = PlainTrainer(settings)
    run = Microbatches(settings, World.single(), PlainPyTorch(parametrization.build(settings), None, 1.0), 0, 2)
    assert run.backpropagate(rows, 12, 6, 0).item() == pytest.approx(plain.step(rows, 0), rel=1e-6)
    message = r"30 of the 30 rows of .* have no target among their tokens 1 to 8 .*Set model.context=16 and data.first"
    with pytest.raises(UserError, match=message):
        training_rows.open_rows(reading(model__context=8))


def test_a_run_logs_each_source_and_resumes_with_them(tmp_path):
    """Against the uninterrupted run, with rows drawn by workers: equal records, origins of rows included."""
    overrides = [f"data.sources={MIXTURE}", "data.ahead=workers", "data.workers=2"]
    train(tmp_path / "straight", *overrides, "run.steps=8")
    for steps in (5, 8):
        train(tmp_path / "parted", *overrides, f"run.steps={steps}")
    fields = ("loss_bits_per_byte", "loss_bits_per_source", "excess_bits_per_source")
    straight, parted = ([[line[f] for f in fields] for line in metrics(tmp_path / n)] for n in ("straight", "parted"))
    assert straight == parted
    assert "dyck 2" in straight[-1][1] and "dyck 2" in straight[-1][2]


def test_targets_of_a_source_do_not_mix_with_a_first_target():
    with pytest.raises(UserError, match="data.first_target: 3, but lists chooses its own targets: give 1"):
        config(data__first_target=3)


def test_a_sample_longer_than_a_row_is_refused():
    """Against a row of 17 tokens, which would hold no whole sample, and so perhaps no target."""
    with pytest.raises(UserError, match=r"items: 9 make samples of 19 tokens, more than a row's 17"):
        tiny.config(data__sources="[{kind: lists, task: sort, items: 9, values: 9}]")
    with pytest.raises(UserError, match=r"operations: 9 make samples of 19 tokens, more than a row's 17"):
        tiny.config(data__sources="[{kind: stack, operations: 9}]")
