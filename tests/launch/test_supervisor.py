"""The supervisor with real ranks that are killed, stopped and signalled under it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import pace
from tests.test_train import Process, command, finish, logged, losses, metrics, start, train, wait_for
from upscale.checkpoint import manifest
from upscale.distributed.watchdog import HEARTBEAT, Watchdog
from upscale.errors import RunError
from upscale.launch import signals, supervisor

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


def training(directory: Path) -> dict[int, str]:
    """The command lines of the processes that train there by number: in rank order, as they are started one by one."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            text = path.read_bytes().decode(errors="replace")
            if str(directory) in text and "train.py" in text:
                found[int(path.parent.name)] = text.replace("\0", " ").strip()
    return dict(sorted(found.items()))


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
    os.kill(list(training(tmp_path))[rank], number)
    code, output = finish(process)
    assert code == 0, output
    assert "restart 1" in output and f"rank {rank} " in output and "resumed from" in output, output
    assert ("did not answer and was killed" in output) == (number == signal.SIGSTOP), output
    assert [record["step"] for record in metrics(tmp_path)] == list(range(1, 61))
    assert losses(tmp_path) == pytest.approx(uninterrupted, rel=1e-5)
    assert not training(tmp_path)


def test_a_request_to_stop_reaches_the_ranks_and_is_not_restarted(tmp_path):
    process = supervised(tmp_path, FSDP, "schedule.instances=10e6")
    wait_for(lambda: logged(tmp_path), process)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 75 and "restart" not in output, output
    assert manifest.steps(tmp_path / "checkpoints")[-1] == metrics(tmp_path)[-1]["step"]
    assert not training(tmp_path)


def test_ranks_whose_supervisor_is_killed_save_and_end(tmp_path):
    """Nobody sees to them any more. The next start finds the directory free and goes on after the last step."""
    process = supervised(tmp_path, FSDP, "schedule.instances=10e6")
    wait_for(lambda: logged(tmp_path), process)
    process.kill()
    deadline = pace.Deadline(60)
    while training(tmp_path):
        assert not deadline.passed(), training(tmp_path)
        time.sleep(0.05)
    assert finish(process)[0] == -signal.SIGKILL
    assert manifest.steps(tmp_path / "checkpoints")[-1] == metrics(tmp_path)[-1]["step"]
    assert "stopped by SIGTERM at step" in (tmp_path / "log.txt").read_text()


def test_a_rank_whose_supervisor_is_gone_before_it_looks_is_told_too():
    """Process 1 started no test."""
    code = "from upscale.launch import signals; signals.remember_stop_requests(); signals.stop_with_supervisor(); "
    words = [sys.executable, "-c", code + "print(signals.requested)"]
    for parent, expected in ((1, "[15]"), (os.getpid(), "[]")):
        variables = {**os.environ, signals.SUPERVISOR: str(parent)}
        assert subprocess.run(words, env=variables, capture_output=True, text=True).stdout.strip() == expected


# A supervisor and its only rank, which prints each request to stop; it is stopped, and once more when it goes on.
STOPPED_RANK = """
import os, signal, subprocess, sys
from upscale.launch import signals

if signals.SUPERVISOR not in os.environ:
    seen_to = {**os.environ, signals.SUPERVISOR: str(os.getpid())}
    subprocess.run([sys.executable, "-c", sys.argv[1]], env=seen_to, start_new_session=True)
signals.catch_stop_signals(lambda number, _frame: print(number, flush=True))
signals.stop_with_supervisor()
print(os.getpid(), flush=True)
for _ in range(2):
    os.kill(os.getpid(), signal.SIGSTOP)
"""


def wait_until_stopped(number: int) -> None:
    deadline = pace.Deadline(60)
    while Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert not deadline.passed()
        time.sleep(0.01)


@pytest.mark.parametrize("asked", [[], [signal.SIGUSR1]], ids=["not-asked", "asked-before"])
def test_a_stopped_rank_whose_supervisor_is_killed_goes_on_to_end(asked):
    """SIGSTOP holds back any other request. A rank that a user lets go on, by SIGCONT, is not asked to stop, and one
    that was asked to is not asked twice, which would end it before it has saved."""
    words = [sys.executable, "-c", STOPPED_RANK, STOPPED_RANK]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    rank = int(process.stdout.readline())
    try:
        wait_until_stopped(rank)
        os.kill(rank, signal.SIGCONT)
        wait_until_stopped(rank)
        for number in asked:
            os.kill(rank, number)
        process.kill()
        assert process.communicate(timeout=60)[0].split() == [str(int(one)) for one in asked or [signal.SIGTERM]]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(rank, signal.SIGKILL)


def test_a_rank_that_is_killed_when_a_stop_is_asked_for_is_told_as_a_shell_would(monkeypatch, tmp_path, capsys):
    """Not 75, for it has not saved, and not 247, which is -9 cut to a byte."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    made = supervisor.Supervisor([], tmp_path, 1, 3, ("sh", "-c", "kill -KILL $$"))
    watch = made.watch

    def watch_when_asked_to_stop(heartbeats: list[Path]) -> tuple[str, int]:
        made.stopping = signal.SIGTERM
        return watch(heartbeats)

    monkeypatch.setattr(made, "watch", watch_when_asked_to_stop)
    assert made.run() == 128 + signal.SIGKILL
    told = capsys.readouterr().err
    assert "rank 0 ended with signal SIGKILL; not started again" in told and "restart" not in told, told


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
    monkeypatch.setattr(supervisor, "count_gpus", lambda: int(gpus))
    assert supervisor.Supervisor([], tmp_path, wanted, 0).available_ranks() == expected


def test_a_mistake_is_not_restarted(tmp_path):
    code, output = finish(supervised(tmp_path, "model.widht=3"))
    assert code == 2 and output.count("unknown key") == 1, output


# Shows life as a rank does; in its first attempt it is stopped then, and in its second it goes on and finishes.
STOPS_ONCE = """
import os, pathlib, signal, sys, time
folder, heartbeat = pathlib.Path(sys.argv[1]), pathlib.Path(os.environ["UPSCALE_HEARTBEAT"])
again = (folder / "again").exists()
(folder / "again").touch()
for _ in range(20):
    heartbeat.touch()
    time.sleep(0.2)
    if not again:
        os.kill(os.getpid(), signal.SIGSTOP)
"""


def test_a_rank_that_shows_no_life_is_killed_and_started_again(monkeypatch, tmp_path, capsys):
    """The second attempt shows life for longer than the silence that is allowed."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    made = supervisor.Supervisor([], tmp_path, 1, 3, (sys.executable, "-c", STOPS_ONCE, str(tmp_path)))
    made.silence_seconds = 3.0
    assert made.run() == 0
    told = capsys.readouterr().err
    assert "rank 0 has shown no life for 3 s and was killed" in told and "restart 1" in told, told


@pytest.mark.parametrize(("others", "reason"), [
    (1, "rank 1 ended with exit code 1; rank 0 did not answer and was killed"),
    (None, "rank 0 has shown no life for 25 s and was killed"),
])  # fmt: skip
def test_a_rank_whose_peers_have_ended_is_told_by_them(monkeypatch, tmp_path, others, reason):
    """By a clock that only waiting moves: the time that a silent rank has, 25 s, is over before its peers' 30 s are."""
    clock = SimpleNamespace(now=0.0)
    waiting = SimpleNamespace(monotonic=lambda: clock.now, sleep=lambda seconds: setattr(clock, "now", clock.now + 1))
    monkeypatch.setattr(supervisor, "time", waiting)
    monkeypatch.setattr(supervisor, "GRACE_SECONDS", 30.0)
    made = supervisor.Supervisor([], tmp_path, 2, 3, silence_seconds=25.0)
    made.ranks = [SimpleNamespace(poll=lambda: None), SimpleNamespace(poll=lambda: others)]
    (tmp_path / "rank-0").touch()
    assert made.watch([tmp_path / "rank-0", tmp_path / "rank-1"]) == (reason, 1)


def test_a_rank_shows_life_while_its_loop_is_busy(monkeypatch, tmp_path):
    """The thread beside the loop does, from the start of the loop to its end; without a supervisor it does nothing."""
    monkeypatch.setenv(HEARTBEAT, str(tmp_path / "rank-0"))
    with Watchdog(1.0, lambda: "never said") as watchdog:
        watchdog.beat()
        deadline = time.monotonic() + 60
        while not (tmp_path / "rank-0").exists():
            watchdog.beat()
            assert time.monotonic() < deadline
            time.sleep(0.01)
    monkeypatch.delenv(HEARTBEAT)
    with Watchdog(1.0, lambda: "never said") as watchdog:
        assert watchdog._heartbeat is None


@pytest.mark.slow
def test_a_lone_rank_that_is_stopped_is_noticed(uninterrupted, tmp_path):
    """Nobody else waits for it; against the losses of a run without faults."""
    process = supervised(tmp_path, ranks=1)
    wait_for(lambda: manifest.steps(tmp_path / "checkpoints") and len(metrics(tmp_path)) >= 8, process)
    os.kill(list(training(tmp_path))[0], signal.SIGSTOP)
    code, output = finish(process)
    assert code == 0, output
    assert re.search(r"rank 0 has shown no life for [\d.]+ s and was killed", output) and "restart 1" in output, output
    assert [record["step"] for record in metrics(tmp_path)] == list(range(1, 61))
    assert losses(tmp_path) == pytest.approx(uninterrupted, rel=1e-5)
    assert not training(tmp_path)


# In its first attempt rank 0 fails and rank 1 works on; in the second, all that are started finish.
FAILS_ONCE = """
import os, pathlib, sys, time
folder, rank, size = pathlib.Path(sys.argv[1]), os.environ["RANK"], int(os.environ["WORLD_SIZE"])
again = (folder / rank).exists()
with open(folder / rank, "a") as file:
    print(rank, "of", size, "on", os.environ["CUDA_VISIBLE_DEVICES"], file=file)
if again:
    sys.exit(0)
while rank != "0" or not all((folder / str(other)).exists() for other in range(size)):
    time.sleep(0.05)
sys.exit(1)
"""


class Unkillable(subprocess.Popen):
    """Rank 1 of a first attempt, held by a driver: it stays when it is killed, and who waits for it waits for ever."""

    held: list[subprocess.Popen] = []

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        if options["env"]["RANK"] == "1" and not self.held:
            self.held.append(self)

    def wait(self, timeout=None):
        if self in self.held:
            assert timeout is not None, "waits for ever"
            raise subprocess.TimeoutExpired(self.args, timeout)
        return super().wait(timeout)


@pytest.fixture
def unkillable(monkeypatch):
    Unkillable.held = []
    monkeypatch.setattr(supervisor.subprocess, "Popen", Unkillable)
    for name in ("GRACE_SECONDS", "KILL_SECONDS"):
        monkeypatch.setattr(supervisor, name, 0.5)
    yield
    for process in Unkillable.held:
        super(Unkillable, process).wait(60)


def starts(folder: Path) -> list[str]:
    return sorted(line for path in folder.iterdir() for line in path.read_text().splitlines())


def test_a_killed_rank_that_does_not_go_is_left_behind(unkillable, monkeypatch, tmp_path, capsys):
    """On CPUs with as many ranks again, on GPUs without the one that it holds."""
    program = (sys.executable, "-c", FAILS_ONCE, str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert supervisor.Supervisor([], tmp_path, 2, 3, program).run() == 0
    assert starts(tmp_path) == sorted(["0 of 2 on ", "1 of 2 on "] * 2)
    told = capsys.readouterr().err
    assert "rank 1 (process" in told and "was killed and does not go" in told and "rank 1 did not answer" in told


def test_the_gpu_of_a_rank_that_does_not_go_is_left_out(unkillable, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    monkeypatch.setattr(supervisor, "count_gpus", lambda: len(os.environ["CUDA_VISIBLE_DEVICES"].split(",")))
    assert supervisor.Supervisor([], tmp_path, None, 3, (sys.executable, "-c", FAILS_ONCE, str(tmp_path))).run() == 0
    assert starts(tmp_path) == sorted(
        [*(f"{rank} of 3 on 4,5,7" for rank in range(3)), "0 of 2 on 4,7", "1 of 2 on 4,7"]
    )
    assert "going on with the GPUs 4, 7" in capsys.readouterr().err


def test_the_last_gpu_that_is_held_ends_it(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(RunError, match="no GPU is left"):
        supervisor.Supervisor([], tmp_path, None, 0, gpus=1).leave_out([0])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


def test_gpus_that_do_not_answer_are_said(monkeypatch):
    """With a time-out that no import of torch keeps."""
    monkeypatch.setattr(supervisor, "COUNT_SECONDS", 0.01)
    with pytest.raises(RunError, match="did not answer within 0.01 s"):
        supervisor.count_gpus()
