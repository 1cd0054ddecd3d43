"""Loss spikes in the real trainer, against a plain trainer that simply does not train on the rounds left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.engines import common
from tests.ranks import run_ranks
from tests.reference.training import PlainTrainer
from upscale import train
from upscale.checkpoint import manifest
from upscale.config import Config, SpikeConfig
from upscale.data import lanes, training_rows
from upscale.distributed.world import World
from upscale.errors import RunError
from upscale.launch import signals
from upscale.training import train_step
from upscale.training.spikes import SpikeGuard, rollbacks_in_a_row

ENGINES = {
    **{f"deepspeed-{stage}": {"engine__zero_stage": stage} for stage in (0, 1, 2, 3)},
    "fsdp": {"engine__name": "fsdp"},
}
STEPS, SPIKES = 12, (7, 10)
"""Saves after steps 4 and 8; blocks wake in steps 5 and 9, which a rollback leaves out."""
LEFT_OUT = {"skip": [(7, 7), (10, 10)], "rollback": [(5, 7), (9, 10)]}


def config(folder: Path, action: str, **changes: object) -> Config:
    chosen = {"checkpoint__every_steps": 4, "optimizer__spike": f"{{window: 4, factor: 1.5, action: {action}}}"}
    chosen |= {"run__dir": folder, "optimizer__epsilon": 1e-4, "data__sources": "[{kind: uniform}]"}
    return tiny.config(**{**chosen, **changes})


def run(world: World, config: Config, spikes: tuple[int, ...] = SPIKES) -> dict:
    """`Trainer.run` with three times the loss, and gradient, in the given steps."""
    trainer = train.Trainer(config, world, [], training_rows.open_rows(config), None, signals.StopRequest())

    def multiplied(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return common.row_losses(logits, targets) * (3 if trainer.counters.step + 1 in spikes else 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_step, "row_losses", multiplied)
        trainer.run()
    return {
        "end": common.copies(trainer.engine, ""),
        "steps": trainer.engine.steps_taken(),
        "counters": trainer.counters,
    }


def run_each(world: World, folder: Path, kinds: list[tuple[str, str]]) -> dict:
    """`run` for every (engine, action), each in a folder of its own."""
    return {
        (label, action): run(world, config(folder / label / action, action, **ENGINES[label]))
        for label, action in kinds
    }


def oracle(config: Config, left_out: list[tuple[int, int]]) -> tuple[dict[int, float], dict[str, torch.Tensor]]:
    """Losses by step and final weights of a run on all lanes that trains on no round in `left_out`."""
    trainer = PlainTrainer(config)
    source, losses = lanes.from_config(config, range(config.data.lanes), "cpu"), {}
    for step in range(1, STEPS + 1):
        rows = source.draw(1)
        if not any(first <= step <= last for first, last in left_out):
            losses[step] = trainer.step(rows, (step - 1) * common.BATCH)
    return losses, {name: p.detach().view(-1) for name, p in trainer.model.named_parameters()}


def logged(folder: Path) -> dict[int, dict]:
    return {record["step"]: record for record in map(json.loads, (folder / "metrics.jsonl").open())}


def assert_equals_oracle(folder: Path, results: list[dict], action: str) -> None:
    losses, weights = oracle(config(folder, action), LEFT_OUT[action])
    records = logged(folder)
    assert sorted(records) == list(range(1, STEPS + 1))
    here = {step: records[step]["loss_bits_per_byte"] * 0.6931471805599453 for step in losses}
    assert here == pytest.approx(losses, rel=1e-6), folder
    for name, value in common.whole(results, "weight").items():
        torch.testing.assert_close(value, weights[name], atol=3e-5, rtol=1e-4, msg=f"{folder} {name}")
    for result in results:
        counters = result["counters"]
        assert [(spike["first"], spike["step"]) for spike in counters.spikes] == LEFT_OUT[action], folder
        assert {spike["action"] for spike in counters.spikes} == {action}
        missing = sum(last - first + 1 for first, last in LEFT_OUT[action])
        assert counters.skipped_steps == records[STEPS]["skipped_steps"] == missing
        assert result["steps"][0] == STEPS - missing
    assert [records[step]["spikes"] for step in (6, 7, 10)] == [0, 1, 2]
    assert [records[step]["grad_norm"] is None for step in (6, 7, 8, 10)] == [False, True, False, True]


@pytest.mark.parametrize(
    ("ranks", "kinds"),
    [
        pytest.param(1, [("fsdp", "rollback"), ("deepspeed-1", "skip")], marks=pytest.mark.slow),
        (2, [*((label, "rollback") for label in ENGINES), ("deepspeed-0", "skip"), ("fsdp", "skip")]),
        pytest.param(3, [(label, "skip") for label in ENGINES], marks=pytest.mark.slow),
    ],
    ids=["1", "2", "3"],
)
def test_what_is_left_after_spikes_equals_the_plain_trainer(tmp_path, ranks, kinds):
    per_rank = run_ranks(run_each, ranks, tmp_path, kinds)
    for label, action in kinds:
        assert_equals_oracle(tmp_path / label / action, [rank[label, action] for rank in per_rank], action)


def test_a_resume_elsewhere_keeps_what_was_left_out_and_still_sees_spikes(tmp_path):
    """Two ranks of ZeRO 2 roll back in step 7 and end there; one of FSDP2 goes on, with the window it never saw."""
    run_ranks(run, 2, config(tmp_path, "rollback", **ENGINES["deepspeed-2"], run__steps=7))
    content = manifest.read(manifest.step_folder(tmp_path / "checkpoints", 7))
    assert [spike["step"] for spike in content["counters"]["spikes"]] == [7]
    assert len(content["counters"]["recent_losses"]) == 4
    resumed = run_ranks(run, 1, config(tmp_path, "rollback", **ENGINES["fsdp"]))
    assert_equals_oracle(tmp_path, resumed, "rollback")
    log = (tmp_path / "log.txt").read_text()
    assert "times the median of the last 4 (optimizer.spike.factor = 1.5), step skipped on every rank" in log
    assert "step 7: rolled back to the weights of step 4; the rounds of steps 5 to 7 are left out" in log


def test_without_a_checkpoint_only_the_spike_is_skipped_with_a_warning(tmp_path):
    found = run_ranks(run, 1, config(tmp_path, "rollback", checkpoint__every_steps=10), (6,))[0]
    assert [(spike["first"], spike["action"]) for spike in found["counters"].spikes] == [(6, "skip")]
    assert "WARNING: step 6: no checkpoint to roll back to yet" in (tmp_path / "log.txt").read_text()


def without_end(world: World, folder: Path) -> list[str]:
    """What the user is told when every step from the sixth on is a spike."""
    found = []
    for action, limit in (("skip", {"optimizer__max_skipped_steps": 2}), ("rollback", {})):
        with pytest.raises(RunError) as raised:
            run(world, config(folder / action, action, **limit), tuple(range(6, STEPS + 1)))
        found.append(str(raised.value))
    return found


def test_spikes_without_end_end_the_run_with_advice(tmp_path):
    skipped, rolled_back = run_ranks(without_end, 1, tmp_path)[0]
    assert skipped.startswith("3 steps in a row were skipped, the last because its loss of")
    assert rolled_back.startswith("step 9: 4 rollbacks without a regular checkpoint between them")
    assert [record["spikes"] for record in logged(tmp_path / "rollback").values()][-1] == 3


def guard(window: int = 3, factor: float = 2.0) -> SpikeGuard:
    return SpikeGuard(SpikeConfig(window=window, factor=factor), World.single(), saver=None)


def test_the_rule():
    """Above factor times the median of a full window; one outlier in the window moves nothing."""
    assert not guard().judge(torch.tensor(99.0), [1.0, 1.0])
    assert guard().judge(torch.tensor(2.1), [1.0, 1.0, 1.0])
    assert not guard().judge(torch.tensor(2.0), [1.0, 1.0, 1.0])
    assert guard().judge(torch.tensor(2.1), [1.0, 50.0, 1.0])
    assert not guard().judge(torch.tensor(2.1), [0.1, 0.1, 0.1, 2.0, 2.0, 2.0]), "only the last three count"
    assert not guard().judge(torch.tensor(torch.nan), [1.0, 1.0, 1.0]), "the engines skip what is not finite"
    off = SpikeGuard(None, World.single(), saver=None)
    assert not off.judge(torch.tensor(99.0), [1.0] * 9) and off.reason() is None


@pytest.mark.parametrize(
    ("spans", "expected"),
    [([], 0), ([(5, 7)], 1), ([(5, 7), (8, 9), (10, 30)], 3), ([(5, 7), (9, 10)], 1), ([(5, 7), (5, 9)], 2)],
)
def test_rollbacks_in_a_row_are_those_to_the_same_weights(spans, expected):
    """A gap between two spans is a regular checkpoint; an overlap is a rollback whose own checkpoint failed."""
    spikes = [{"first": first, "step": step, "action": "rollback"} for first, step in spans]
    assert rollbacks_in_a_row(spikes) == expected
    assert rollbacks_in_a_row([*spikes, {"first": 40, "step": 40, "action": "skip"}]) == 0
