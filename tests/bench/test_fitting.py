"""The search for the largest micro-batch against a device that is known to hold so many rows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests import tiny
from upscale.bench import fitting
from upscale.distributed.world import World
from upscale.errors import UserError
from upscale.planning import memory


@pytest.mark.parametrize("start", [1, 3, 64, 500])
@pytest.mark.parametrize("holds", [0, 1, 2, 7, 15, 100, 257, 511, 512, 4000])
def test_the_largest_that_fits_is_found(start, holds):
    """Exactly below 16 rows, above within an eighth, never more than fit, and in few trials."""
    tried = []

    def fits(rows: int) -> bool:
        tried.append(rows)
        return rows <= holds

    found = fitting.largest(fits, start, 512)
    truth = min(holds, 512)
    assert found <= truth and (found == truth if truth < 16 or truth == 512 else found > truth * 7 / 8 - 1)
    assert len(tried) == len(set(tried)) <= 16 and all(1 <= rows <= 512 for rows in tried)


def test_running_out_of_memory_builds_everything_anew(monkeypatch):
    """A device that holds 24 rows and fails as CUDA does."""
    trial, built, closed = fitting.Trial(tiny.config(), World.single()), [], []

    def train(rows: int) -> None:
        if trial.engine is None:
            trial.engine = SimpleNamespace(close=lambda: closed.append(rows))
            built.append(rows)
        if rows > 24:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trial, "train", train)
    monkeypatch.setattr(trial, "leaves_room", lambda: True)
    assert fitting.largest(trial.fits, 8, 512) in (23, 24)
    assert built[0] == 8 and 2 <= len(built) <= 4 and len(closed) >= len(built) - 1


def test_several_ranks_go_no_further_than_every_one_of_them_holds(monkeypatch):
    """Two peaks on a line, 1 GB and 10 MB a row, of a device of 2 GB: 90 rows are 95 %."""
    trial = fitting.Trial(tiny.config(), World(0, 2, torch.device("cpu"), "test"))
    monkeypatch.setattr(trial.world, "any", lambda flag: flag)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 2_000_000_000))
    trial.peaks = {8: 1_080_000_000, 16: 1_160_000_000}
    assert trial.is_safe(90) and not trial.is_safe(91)


def test_on_a_cpu_the_plan_decides(monkeypatch):
    config, world = tiny.config(engine__micro_batch="auto"), World.single()
    monkeypatch.setattr(fitting, "free_bytes", lambda: 1e9)
    assert fitting.micro_batch(config, world, 1) == (12, "planned")
    planned = (sum(memory.state_bytes(config, 1).values()) + memory.activation_bytes(config, 3)) / memory.USABLE_MEMORY
    monkeypatch.setattr(fitting, "free_bytes", lambda: 2 * planned * fitting.CPU_ACTIVATIONS + 4)
    assert fitting.micro_batch(config, world, 2) == (3, "planned")
    monkeypatch.setattr(fitting, "free_bytes", lambda: 1e6)
    with pytest.raises(UserError, match="do not fit this machine's free memory"):
        fitting.micro_batch(config, world, 1)
    assert fitting.micro_batch(tiny.config(), world, 1) == (2, "given")


def test_free_memory_is_what_the_control_group_leaves(monkeypatch, tmp_path):
    (tmp_path / "memory.current").write_text("300\n")
    monkeypatch.setattr(fitting, "CONTROL_GROUP", tmp_path)
    (tmp_path / "memory.max").write_text("1000\n")
    assert fitting.free_bytes() == 700
    (tmp_path / "memory.max").write_text("max\n")
    assert fitting.free_bytes() > 1e6
