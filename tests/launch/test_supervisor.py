"""The supervisor with real ranks that are killed, stopped and signalled under it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import pace
from tests.test_train import Process, command, finish, logged, losses, metrics, start, train, wait_for
from upscale.checkpoint import manifest
from upscale.launch import supervisor

LONG = ["schedule.instances=720", "checkpoint.every_steps=5"]
FSDP = "engine.name=fsdp"
"""Starts sooner than DeepSpeed, which the tests of lost ranks use."""
# As `python -m upscale.launch.supervisor`, with as much more time for peers to end as this machine is slower.
PROGRAM = """
from upscale.console import command
from upscale.launch import supervisor

supervisor.GRACE_SECONDS *= {pace}
command.run(supervisor.main)
"""


def supervised(directory: Path, *extra: str, ranks: int = 2) -> Process:
    slower = pace.measure()
    program = [sys.executable, "-c", PROGRAM.format(pace=slower), "--ranks", str(ranks)]
    return start([*program, *command(directory, *LONG, f"engine.timeout_seconds={5 * slower}", *extra)])


def children(process: Process) -> list[int]:
    """The ranks, in rank order: they are started one after the other."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return sorted(int(pid) for pid in found if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes())


def left_over(directory: Path) -> list[str]:
    """Processes that still name the run directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(directory) in text and "train.py" in text:
            found.append(text)
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> list[float]:
    directory = tmp_path_factory.mktemp("uninterrupted")
    train(directory, *LONG)
    return losses(directory)


@pytest.mark.parametrize(
    ("number", "rank"),
    [
        (signal.SIGKILL, 1),
        pytest.param(signal.SIGSTOP, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, 1, marks=pytest.mark.slow),
    ],
    ids=["killed", "first-hanging", "hanging"],
)
def test_a_lost_rank_costs_a_restart_and_nothing_else(uninterrupted, tmp_path, number, rank):
    """Against the losses of a run without faults on one rank; the message names the rank, and no process stays.

    The first rank keeps the store that the others ask who is left.
    """
    process = supervised(tmp_path)
    wait_for(lambda: manifest.steps(tmp_path / "checkpoints") and len(metrics(tmp_path)) >= 8, process)
    os.kill(children(process)[rank], number)
    code, output = finish(process)
    assert code == 0, output
    assert "restart 1" in output and f"rank {rank} " in output and "resumed from" in output, output
    assert ("did not answer and was killed" in output) == (number == signal.SIGSTOP), output
    assert [record["step"] for record in metrics(tmp_path)] == list(range(1, 61))
    assert losses(tmp_path) == pytest.approx(uninterrupted, rel=1e-5)
    assert not left_over(tmp_path)


def test_a_request_to_stop_reaches_the_ranks_and_is_not_restarted(tmp_path):
    process = supervised(tmp_path, FSDP, "schedule.instances=10e6")
    wait_for(lambda: logged(tmp_path), process)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 75 and "restart" not in output, output
    assert manifest.steps(tmp_path / "checkpoints")[-1] == metrics(tmp_path)[-1]["step"]
    assert not left_over(tmp_path)


def test_a_second_signal_ends_a_rank_at_once(tmp_path):
    """While it saves, say; here the second follows before a step has ended."""
    process = start(
        [sys.executable, "upscale/train.py", *command(tmp_path, "schedule.instances=10e6", "model.width=512")]
    )
    wait_for(lambda: logged(tmp_path), process)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] in (128 + signal.SIGTERM, 75)


def test_a_fault_that_repeats_at_one_step_ends_it(tmp_path):
    """Every restart diverges at the same step, so restarting does not help."""
    process = supervised(
        tmp_path, FSDP, "optimizer.learning_rate=1e30", "schedule.warmup=0", "optimizer.max_skipped_steps=0", ranks=1
    )
    code, output = finish(process)
    assert code == 1 and "failed 3 times at the same step" in output, output


@pytest.mark.parametrize(("wanted", "gpus", "expected"), [(4, "3", 3), (2, "3", 2), (None, "3", 3), (4, "0", 4)])
def test_fewer_ranks_when_a_gpu_is_gone(monkeypatch, tmp_path, wanted, gpus, expected):
    """Against what a machine with so many GPUs would answer."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    answer = subprocess.CompletedProcess([], 0, stdout=f"{gpus}\n")
    monkeypatch.setattr(supervisor.subprocess, "run", lambda *_arguments, **_options: answer)
    assert supervisor.Supervisor([], tmp_path, wanted, 0).available_ranks() == expected


def test_a_mistake_is_not_restarted(tmp_path):
    code, output = finish(supervised(tmp_path, "model.widht=3"))
    assert code == 2 and output.count("unknown key") == 1, output
