"""NCCL's variables as a function of what is given, and a record of real collectives: gloo's, for want of a GPU."""

from __future__ import annotations

import functools
import os
import pickle
import threading
from pathlib import Path

import pytest
import torch

from tests.ranks import run_ranks
from upscale.distributed import flight_recorder
from upscale.distributed.world import World


def test_a_gpu_run_records_into_its_run_directory():
    found = flight_recorder.variables({}, "cuda", Path("/runs/x"), 599.5)
    assert found == {
        "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": "/runs/x/flight_recorder/rank-",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
        "TORCH_NCCL_ENABLE_MONITORING": "1",
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": "600",
    }


def test_the_environment_of_a_process_is_accepted(monkeypatch):
    """os.environ refuses keys that a dict accepts."""
    for name in (*flight_recorder.NEWER_NAMES, *flight_recorder.NEWER_NAMES.values()):
        monkeypatch.delenv(name, raising=False)
    found = flight_recorder.variables(os.environ, "cuda", Path("/runs/x"), 600)
    assert found["TORCH_NCCL_TRACE_BUFFER_SIZE"] == "2000"


def test_a_run_on_cpus_changes_nothing():
    assert flight_recorder.variables({}, "cpu", Path("/runs/x"), 600) == {}


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("TORCH_NCCL_TRACE_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"),
        ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"),
        ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"),
        ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_ASYNC_ERROR_HANDLING"),
    ],
)
def test_what_the_user_has_set_stays(given, left):
    found = flight_recorder.variables({given: "0"}, "cuda", Path("x"), 600)
    assert left not in found and given not in found and len(found) == 5


def record_gloo(world: World, folder: Path) -> Path | None:
    world.all_reduce_sum(torch.ones(3))
    record = functools.partial(torch._C._distributed_c10d._dump_fr_trace, includeStackTraces=False)
    return flight_recorder.dump(folder, world.rank, record)


@pytest.mark.skipif(not hasattr(torch._C._distributed_c10d, "_dump_fr_trace"), reason="this torch records NCCL only")
def test_a_dump_names_the_collectives_of_its_rank(tmp_path):
    (tmp_path / flight_recorder.FOLDER).mkdir()
    paths = run_ranks(record_gloo, 2, tmp_path)
    assert [path.name for path in paths] == ["rank-0", "rank-1"]
    for path in paths:
        names = [entry["profiling_name"] for entry in pickle.loads(path.read_bytes())["entries"]]
        assert any("all_reduce" in name for name in names), names


def test_a_record_that_cannot_be_read_delays_the_end_but_does_not_prevent_it(tmp_path, monkeypatch):
    """As when the GPU hangs too, and as when the folder is gone."""
    monkeypatch.setattr(flight_recorder, "DUMP_SECONDS", 0.05)
    monkeypatch.setattr(threading, "excepthook", lambda _arguments: None)
    assert flight_recorder.dump(tmp_path, 0, threading.Event().wait) is None
    assert flight_recorder.dump(tmp_path / "missing", 0, lambda: b"x") is None
