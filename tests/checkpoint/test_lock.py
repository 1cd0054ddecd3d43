"""Exclusive use of a run directory: races, dead, stopped, silent and foreign holders, and what a lost one does."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from tests import tiny
from tests.forks import Forked
from tests.pace import Deadline
from tests.test_train import command, finish, logged, metrics, start, train, wait_for
from upscale.checkpoint import lock, manifest
from upscale.checkpoint.writer import Writer, snapshot
from upscale.distributed.world import World
from upscale.errors import UserError
from upscale.evaluation.record import EvaluationRecord
from upscale.files import append_json_lines, read_json_lines
from upscale.training.logger import Tracker

ELSEWHERE = {"host": "n7", "process": 4711, "started": 5, "place": "another boot"}


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(lock, "LOOK_SECONDS", 0.02)
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)


def acquire(directory: Path) -> lock.Lock:
    """The lock; raises UserError when it is refused."""
    candidate = lock.Candidate(directory)
    while isinstance(found := candidate.look(), str):
        time.sleep(lock.LOOK_SECONDS)
    return found


def held(directory: Path, number: int = 1, **changes: object) -> Path:
    """The file of a holder elsewhere, which shows no life by itself."""
    folder = directory / lock.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    holder = lock.Holder(**{**ELSEWHERE, "folder": folder.stat().st_ino, **changes})
    (folder / str(number)).write_text(json.dumps(dataclasses.asdict(holder)))
    return folder / str(number)


def contend(directory: str, name: str) -> None:
    """Hold the directory whenever it can be had, four times; while it is held, nobody else may be in it."""
    inside, lock.LOOK_SECONDS = Path(directory) / "inside", 0.01
    for _ in range(4):
        try:
            found = acquire(Path(directory))
        except UserError:
            time.sleep(0.002)
            continue
        inside.mkdir()  # raises FileExistsError when another is in it
        (Path(directory) / f"had-{name}").touch()
        inside.rmdir()
        found.release()


def test_many_at_once_hold_it_one_after_the_other(tmp_path):
    processes = [Forked(contend, str(tmp_path), str(index)) for index in range(3)]
    assert [finish(process) for process in processes] == [(0, "")] * 3
    assert list(tmp_path.glob("had-*")) and not (tmp_path / "inside").exists()


def hold(directory: str) -> None:
    acquire(Path(directory))
    (Path(directory) / "ready").touch()
    time.sleep(600)


@pytest.fixture
def holder(tmp_path):
    """Another process of this machine that holds the directory."""
    process = Forked(hold, str(tmp_path))
    wait_for((tmp_path / "ready").exists, process)
    yield process
    process.kill()
    process.wait(60)


def test_a_dead_process_of_this_machine_is_followed_at_once(tmp_path, holder):
    with pytest.raises(UserError, match=f"in use by process {holder.pid} on .*kill {holder.pid} on"):
        acquire(tmp_path)
    holder.send_signal(signal.SIGSTOP)  # alive: it may go on at any moment
    with pytest.raises(UserError, match=f"in use by process {holder.pid}"):
        acquire(tmp_path)
    holder.kill()
    holder.wait(60)
    assert isinstance(lock.Candidate(tmp_path).look(), lock.Lock)
    assert [path.name for path in (tmp_path / lock.FOLDER).iterdir()] == ["2"]


def test_what_was_released_and_what_is_our_own_is_taken_at_once(tmp_path):
    first = acquire(tmp_path)
    second = lock.Candidate(tmp_path).look()
    assert isinstance(second, lock.Lock) and second.number == 2
    second.release()
    first.release()  # too late to say anything
    third = lock.Candidate(tmp_path).look()
    assert third.number == 3 and [path.name for path in (tmp_path / lock.FOLDER).iterdir()] == ["3"]


def test_a_process_number_that_is_used_again_is_another_process(tmp_path):
    held(tmp_path, process=os.getppid(), started=1, place=lock._place())
    assert isinstance(lock.Candidate(tmp_path).look(), lock.Lock)


@pytest.mark.parametrize(
    ("state", "pending", "runs"), [("S", "0", True), ("T", "8000", True), ("Z", "0", False), ("D", "100", False)]
)
def test_a_zombie_and_a_killed_process_that_does_not_go_are_dead(tmp_path, state, pending, runs):
    """As the kernel shows them; SIGKILL is signal 9, bit 8 of what is pending."""
    (tmp_path / "9").mkdir()
    (tmp_path / "9/stat").write_text(f"9 (a ) b) {state} " + " ".join(map(str, range(4, 53))))
    (tmp_path / "9/status").write_text(f"Name:\tx\nSigPnd:\t{pending:0>16}\nShdPnd:\t{0:016}\n")
    assert lock.start_ticks(9, tmp_path) == (22 if runs else 0)


def test_a_holder_elsewhere_is_refused_when_it_shows_life(tmp_path):
    path = held(tmp_path)
    candidate = lock.Candidate(tmp_path)
    assert "process 4711 on n7, which is not known to have ended" in candidate.look()
    os.utime(path, ns=(1, 1))  # by a clock that is far behind ours
    with pytest.raises(UserError, match="in use by process 4711 on n7.*kill 4711 on n7"):
        candidate.look()


def test_a_holder_elsewhere_is_followed_after_its_silence(tmp_path, monkeypatch):
    held(tmp_path, number=41)
    candidate = lock.Candidate(tmp_path)
    assert isinstance(candidate.look(), str)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + lock.SILENCE_SECONDS - 1)
    assert isinstance(candidate.look(), str)
    monkeypatch.setattr(time, "monotonic", lambda: now + lock.SILENCE_SECONDS + 1)
    assert candidate.look().number == 42


def test_a_lock_file_of_a_full_disk_or_a_crash_says_nothing_and_is_judged_by_its_silence(tmp_path, monkeypatch):
    for text in ("", "{", "[]", '{"process": "rm -rf", "free": 1, "started": null}'):
        held(tmp_path).write_text(text)
        assert "an unknown host" in lock.Candidate(tmp_path).look()


def test_a_full_disk_takes_no_turn(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        acquire(tmp_path)
    assert not list((tmp_path / lock.FOLDER).iterdir())


def test_a_copy_of_a_run_directory_is_not_in_use(tmp_path, holder, monkeypatch):
    """The copied file names a process that lives, so only that nobody touches it tells."""
    shutil.copytree(tmp_path / lock.FOLDER, tmp_path / "copy" / lock.FOLDER)
    assert isinstance(lock.Candidate(tmp_path / "copy").look(), str)
    monkeypatch.setattr(lock, "SILENCE_SECONDS", 0.2)
    assert acquire(tmp_path / "copy").number == 2
    with pytest.raises(UserError):
        acquire(tmp_path)


def test_the_holder_touches_its_file(tmp_path):
    found = acquire(tmp_path)
    os.utime(found.path, ns=(0, 0))
    deadline = Deadline(60)
    while found.path.stat().st_mtime_ns == 0:
        assert not deadline.passed()
        time.sleep(0.01)
    found.release()


def test_who_was_taken_for_dead_writes_nothing_more(tmp_path):
    """A checkpoint fails with the other's name, and nothing of it stays; a moved directory is said too."""
    found = acquire(tmp_path)
    found.check()
    writer = Writer(tmp_path / "checkpoints", World.single(), 3, asynchronous=False, check=found.check)
    writer.save(snapshot(1, [], {}, {"counters": {"step": 1}}))
    assert writer.failure is None
    held(tmp_path, number=2)
    with pytest.raises(UserError, match="was taken over by process 4711 on n7"):
        found.check()
    writer.save(snapshot(2, [], {}, {"counters": {"step": 2}}))
    assert "taken over by process 4711" in writer.failure
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    found.release()
    assert not (tmp_path / lock.FOLDER / "1").exists() or not json.loads(found.path.read_text())["free"]
    (tmp_path / lock.FOLDER).rename(tmp_path / "moved")
    with pytest.raises(UserError, match="has been moved or removed"):
        found.check()


def add_records(directory: str, name: str, count: int) -> None:
    """As `upscale evaluate` does, as often as it can."""
    lock.LOOK_SECONDS = 0.002
    path = Path(directory) / "evaluations.jsonl"
    for step in range(count):
        with lock.alone(Path(directory), path.name):
            append_json_lines(path, [{"step": step, "task": name}])
    (Path(directory) / f"done-{name}").touch()


def test_nothing_is_lost_of_a_file_that_a_training_rewrites_while_others_add_to_it(tmp_path, monkeypatch):
    """A start and its evaluation, which rewrite evaluations.jsonl, again and again beside two that append."""
    monkeypatch.setattr(lock, "LOOK_SECONDS", 0.002)
    others = [Forked(add_records, str(tmp_path), name, 30) for name in ("dyck", "aut")]
    rounds = 0
    while len(list(tmp_path.glob("done-*"))) < 2:
        assert all(process.poll() in (None, 0) for process in others)
        rounds += 1
        tracker = Tracker(tiny.config(run__dir=tmp_path), tmp_path, True, step=10**6, wandb_id="")
        tracker.evaluations([EvaluationRecord(step=7, instances=84, task="wp", bits_per_character=8.0)])
        tracker.close()
    assert [finish(process) for process in others] == [(0, "")] * 2
    found = [(record["task"], record["step"]) for record in read_json_lines(tmp_path / "evaluations.jsonl")]
    assert sorted(found) == sorted([("wp", 7), *((name, step) for name in ("dyck", "aut") for step in range(30))])
    assert rounds > 1


def stay(directory: str) -> None:
    with lock.alone(Path(directory), "records"):
        (Path(directory) / "ready").touch()
        time.sleep(600)


def test_who_is_alone_with_a_file_is_waited_for_but_not_for_ever(tmp_path, monkeypatch):
    process = Forked(stay, str(tmp_path))
    try:
        wait_for((tmp_path / "ready").exists, process)
        candidate = lock.Candidate(tmp_path, folder="records.lock", brief=True)
        assert f"process {process.pid} on" in candidate.look() and isinstance(candidate.look(), str)
        monkeypatch.setattr(lock, "SILENCE_SECONDS", 0.2)
        with lock.alone(tmp_path, "records"):  # it lives and shows life, but no such block lasts so long
            assert process.poll() is None
    finally:
        process.kill()
        process.wait(60)


SQUEUE = """#!/bin/sh
case " $* " in
*" --jobs=17 "*) echo RUNNING ;;
*" --jobs=18 "*) ;;
*" --jobs=19 "*) echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1 ;;
*) echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1 ;;
esac
"""
INSIDE = {"SLURM_CLUSTER_NAME": "c", "SLURM_JOB_ID": "30", "SLURM_RESTART_COUNT": "1"}


@pytest.mark.parametrize(
    ("environment", "changes", "outcome"),
    [
        (INSIDE, {"job": "17", "owned_by_job": True, "free": True}, "belongs to job 17, which has not ended"),
        (INSIDE, {"job": "17"}, "wait"),
        (INSIDE, {"job": "17", "free": True}, "taken"),
        (INSIDE, {"job": "18"}, "taken"),
        (INSIDE, {"job": "19", "owned_by_job": True}, "taken"),
        (INSIDE, {"job": "20"}, "wait"),
        (INSIDE, {"job": "18", "cluster": "d"}, "wait"),
        (INSIDE, {"job": "30", "restart": 0}, "taken"),
        (INSIDE, {"job": "30", "restart": 1}, "wait"),
        (INSIDE, {"job": "30", "restart": 1, "owned_by_job": True, "free": True}, "taken"),
        ({}, {"job": "17", "owned_by_job": True, "free": True}, "belongs to job 17, which has not ended"),
        ({}, {"job": "18"}, "wait"),
    ],
)
def test_slurm_knows_whose_job_is_over(tmp_path, monkeypatch, environment, changes, outcome):
    """By the answers of Slurm 22.05's squeue; from outside a job they may be those of another cluster."""
    (tmp_path / "squeue").write_text(SQUEUE)
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    held(tmp_path, **{"cluster": "c", **changes})
    candidate = lock.Candidate(tmp_path, environment)
    if outcome in ("taken", "wait"):
        assert isinstance(candidate.look(), lock.Lock if outcome == "taken" else str)
    else:
        with pytest.raises(UserError, match=outcome):
            candidate.look()


def test_a_claimed_directory_stays_the_jobs_between_its_steps(tmp_path):
    """Its ranks take their turns in it at once, and their turns keep it for the job."""
    lock.claim(tmp_path, INSIDE)
    for number in (2, 3):
        rank = lock.Candidate(tmp_path, INSIDE).look()
        assert rank.number == number and rank.holder.owned_by_job
        rank.release()
    assert not lock.Candidate(tmp_path, {**INSIDE, "SLURM_JOB_ID": "31"}).look().holder.owned_by_job


def test_a_second_training_is_refused_and_the_first_goes_on(tmp_path):
    """Two ranks against one; then the first world is killed, and the next start waits for nothing."""
    endless = command(tmp_path, "engine.name=fsdp", "run.steps=100000", "schedule.instances=10e6")
    first = start([sys.executable, "upscale/train.py", *endless])
    wait_for(lambda: logged(tmp_path), first)
    output = train(tmp_path, "run.steps=100000", "schedule.instances=10e6", "engine.name=fsdp", expect=2)
    assert f"in use by process {first.pid} on {os.uname().nodename}" in output and output.count("error:") == 1
    seen = len(metrics(tmp_path))
    wait_for(lambda: len(metrics(tmp_path)) > seen, first)
    first.kill()
    first.wait(60)
    steps = metrics(tmp_path)[-1]["step"] + 2
    output = train(tmp_path, f"run.steps={steps}", "schedule.instances=10e6", "engine.name=fsdp")
    assert "waiting for" not in output
    assert [record["step"] for record in metrics(tmp_path)] == list(range(1, steps + 1))
    assert manifest.steps(tmp_path / "checkpoints") == [steps]
