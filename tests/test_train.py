"""The training program as users start it: every launcher, resuming, stopping, and whatever can be typed wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests import forks, tiny
from tests.pace import Deadline
from tests.ranks import free_port
from upscale.checkpoint import manifest

ROOT = Path(__file__).parents[1]
TIMEOUT_SECONDS = 240
Process = subprocess.Popen | forks.Forked
SLOW_STEPS = ["run.steps=100000", "schedule.instances=10e6"]


def environment(**extra: str) -> dict[str, str]:
    """Without this test run's own launcher variables or threads."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("SLURM", "RANK", "WORLD", "MASTER", "LOCAL"))
    }
    binaries = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {
        **kept,
        "PATH": binaries,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        **extra,
    }


def command(directory: Path, *extra: str) -> list[str]:
    return [*tiny.overrides(run__dir=directory), *extra]


def start(arguments: list[str], server: int = 0, **extra: str) -> Process:
    return forks.start(arguments, environment(**extra), server=server)


def start_fresh(arguments: list[str], **extra: str) -> Process:
    """For tests of what happens while a command imports."""
    return forks.start_fresh(arguments, environment(**extra))


def finish(process: Process) -> tuple[int, str]:
    deadline = Deadline(TIMEOUT_SECONDS)
    while not deadline.passed():
        try:
            output, _ = process.communicate(timeout=deadline.left())
        except subprocess.TimeoutExpired:
            continue
        return process.returncode, output
    process.kill()
    output, _ = process.communicate()
    raise AssertionError(f"did not end within {TIMEOUT_SECONDS} s:\n{output}")


def train(directory: Path, *extra: str, expect: int = 0) -> str:
    code, output = finish(start([sys.executable, "upscale/train.py", *command(directory, *extra)]))
    assert code == expect, output
    return output


def metrics(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def losses(directory: Path) -> list[float]:
    return [record["loss_bits_per_byte"] for record in metrics(directory)]


def torchrun(ranks: int) -> list[str]:
    return ["torchrun", f"--nproc_per_node={ranks}", f"--master_port={free_port()}", "upscale/train.py"]


def start_as_srun_would(ranks: int, arguments: list[str]) -> list[Process]:
    """One process a task with the variables that Slurm sets in a step, on one node."""
    job = str(free_port())
    shared = {"SLURM_JOB_ID": job, "SLURM_STEP_ID": "0", "SLURM_NTASKS": str(ranks), "SLURM_STEP_NODELIST": "localhost"}
    words = [sys.executable, "upscale/train.py", *arguments]
    return [
        start(words, server=rank % 2, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank), **shared)
        for rank in range(ranks)
    ]


def as_srun_would(ranks: int, arguments: list[str]) -> list[str]:
    """Train so to the end; what each rank printed."""
    results = [finish(task) for task in start_as_srun_would(ranks, arguments)]
    assert [code for code, _ in results] == [0] * ranks, results
    return [output for _, output in results]


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    """Twelve steps on one rank, without interruption."""
    directory = tmp_path_factory.mktemp("single") / "run"
    train(directory)
    return directory


def test_every_launcher_makes_the_same_world_and_losses(single, tmp_path):
    """Two ranks by torchrun, deepspeed and Slurm's variables: bit-equal among themselves, 1e-5 from one rank."""
    code, output = finish(start([*torchrun(2), *command(tmp_path / "torchrun")]))
    assert code == 0, output
    launcher = ["deepspeed", "--num_gpus", "2", "--master_port", str(free_port()), "upscale/train.py"]
    code, output = finish(start([*launcher, *command(tmp_path / "deepspeed")]))
    assert code == 0, output
    as_srun_would(2, command(tmp_path / "srun"))
    for name in ("torchrun", "deepspeed", "srun"):
        assert [record["world_size"] for record in metrics(tmp_path / name)] == [2] * 12
        assert losses(tmp_path / name) == losses(tmp_path / "torchrun")
        assert losses(tmp_path / name) == pytest.approx(losses(single), rel=1e-5)


@pytest.mark.slow
def test_an_uneven_world_at_every_stage_gives_the_same_losses(single, tmp_path):
    """Five ranks over twelve lanes at ZeRO 3: three lanes, three, two, two, two."""
    code, output = finish(start([*torchrun(5), *command(tmp_path / "run", "engine.zero_stage=3")]))
    assert code == 0, output
    assert losses(tmp_path / "run") == pytest.approx(losses(single), rel=1e-5)


def test_dropout_keyed_by_row_gives_the_same_losses_in_any_world(single, tmp_path):
    """One rank against three; with masks keyed by rank they would differ by more than a tenth of a bit."""
    extra = ["model.dropout=0.3", "model.dropout_keys=row"]
    train(tmp_path / "one", *extra)
    as_srun_would(3, command(tmp_path / "three", *extra))
    assert losses(tmp_path / "three") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert losses(tmp_path / "one") != pytest.approx(losses(single), rel=1e-3)


def test_metrics_have_the_fields_of_the_contract(single):
    """Against the contract in docs/architecture.md; units are in the names."""
    fields = """step instances tokens loss_bits_per_byte learning_rate global_batch active_blocks grad_norm step_seconds
    generate_seconds tokens_per_second tokens_per_second_per_device model_flops_utilization peak_memory_gib
    world_size""".split()
    records = metrics(single)
    assert set(fields) <= set(records[0])
    assert [record["step"] for record in records] == list(range(1, 13))
    assert [record["active_blocks"] for record in records] == [2] * 4 + [4] * 4 + [6] * 4
    assert records[-1]["tokens"] == 12 * 12 * 16 and records[-1]["instances"] == 144
    assert records[0]["learning_rate"] == pytest.approx(1e-2 / 24)


def test_the_run_directory(single):
    config = yaml.safe_load((single / "config.yaml").read_text())
    assert config["model"]["depth"] == 6 and config["data"]["draw"] == 1 and "commit" in config["versions"]
    assert "step      12" in (single / "log.txt").read_text()
    assert manifest.steps(single / "checkpoints") == [12]


def test_resuming_is_bit_equal_with_dropout(tmp_path):
    """Twelve steps at once against five, five more and the rest, through a mid-way waking of blocks."""
    extra = ["model.dropout=0.1", "engine.zero_stage=2", "engine.precision=bf16"]
    train(tmp_path / "whole", *extra)
    for steps in ("run.steps=5", "run.steps=10", "run.steps=null"):
        output = train(tmp_path / "parts", *extra, steps)
    assert "resumed from" in output and "step 10, 120 instances" in output
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    ends = [manifest.step_folder(tmp_path / name / "checkpoints", 12) for name in ("whole", "parts")]
    for name in manifest.read(ends[0])["files"]:
        assert (ends[0] / name).read_bytes() == (ends[1] / name).read_bytes(), name


def test_running_a_finished_run_again_changes_nothing(single):
    before = (single / "metrics.jsonl").read_bytes()
    assert "nothing left to do" in train(single)
    assert (single / "metrics.jsonl").read_bytes() == before


def test_records_that_a_crash_undid_are_dropped(tmp_path):
    """As after a kill at step 8 with the newest checkpoint at 5: steps 6 to 8 are trained, and logged, again."""
    train(tmp_path, "run.steps=5")
    kept = metrics(tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps({**kept[-1], "step": step, "loss_bits_per_byte": 99.0}) + "\n" for step in (6, 7, 8))
        file.write('{"step": 9, "lo')
    train(tmp_path)
    assert [record["step"] for record in metrics(tmp_path)] == list(range(1, 13))
    assert max(losses(tmp_path)) < 20


def wait_for(condition, process: Process) -> None:
    deadline = Deadline(TIMEOUT_SECONDS)
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert not deadline.passed()
        time.sleep(0.05)


def catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal, from the kernel's own record."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def logged(directory: Path) -> bool:
    return (directory / "metrics.jsonl").exists() and len((directory / "metrics.jsonl").read_text().splitlines()) >= 3


@pytest.mark.parametrize(
    "number", [signal.SIGUSR1, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)], ids=["USR1", "TERM"]
)
def test_a_signal_to_one_rank_saves_and_exits_75_on_all(single, tmp_path, number):
    """The decision is reduced at a step's end; the run then continues to the same losses."""
    tasks = start_as_srun_would(2, command(tmp_path, *SLOW_STEPS))
    wait_for(lambda: logged(tmp_path), tasks[0])
    tasks[1].send_signal(number)
    results = [finish(task) for task in tasks]
    assert [code for code, _ in results] == [75, 75], results
    step = metrics(tmp_path)[-1]["step"]
    assert manifest.steps(tmp_path / "checkpoints") == [step]
    assert "resumed from" in train(tmp_path, f"run.steps={step + 2}", "schedule.instances=10e6")
    assert [record["step"] for record in metrics(tmp_path)] == list(range(1, step + 3))
    assert losses(tmp_path)[:12] == pytest.approx(losses(single)[: len(losses(tmp_path))], rel=1e-5)


@pytest.mark.parametrize("program", [["upscale/train.py"], ["-c", "from upscale.cli import main; main()", "train"]])
def test_a_request_to_stop_while_importing_exits_75(tmp_path, program):
    """There is nothing to save yet, but a job that is to be run again must say so."""
    process = start_fresh([sys.executable, *program, *command(tmp_path, *SLOW_STEPS)])
    wait_for(lambda: catches(process.pid, signal.SIGTERM), process)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 75, output


@pytest.mark.parametrize("phase", ["importing", "training", "saving"])
def test_control_c_exits_130_and_leaves_only_whole_files(tmp_path, phase):
    extra = ["checkpoint.every_steps=1"] if phase == "saving" else []
    begin = start_fresh if phase == "importing" else start
    process = begin([sys.executable, "upscale/train.py", *command(tmp_path / "run", *SLOW_STEPS, *extra)])
    if phase == "importing":  # the handler for SIGUSR1 is set right after that for Control-C, which Python has anyway
        wait_for(lambda: catches(process.pid, signal.SIGUSR1), process)
    else:
        wait_for(lambda: logged(tmp_path / "run"), process)
    process.send_signal(signal.SIGINT)
    code, output = finish(process)
    assert code == 130 and "Traceback" not in output, output
    folder = tmp_path / "run/checkpoints"
    for step in manifest.steps(folder):
        content = manifest.read(manifest.step_folder(folder, step))
        assert not any(
            manifest.file_problem(manifest.step_folder(folder, step) / n, e) for n, e in content["files"].items()
        )
    if phase != "importing":
        metrics(tmp_path / "run")


def test_training_outlives_the_reader_of_its_output(tmp_path):
    """As `upscale train ... | head -1`."""
    process = start([sys.executable, "upscale/train.py", *command(tmp_path)])
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(TIMEOUT_SECONDS) == 0
    assert len(metrics(tmp_path)) == 12 and "finished at step 12" in (tmp_path / "log.txt").read_text()


def test_too_many_skipped_steps_end_the_run_with_advice(tmp_path):
    """A learning rate that overflows float32 in its first step."""
    output = train(
        tmp_path, "optimizer.learning_rate=1e30", "schedule.warmup=0", "optimizer.max_skipped_steps=3", expect=1
    )
    assert "4 steps in a row were skipped" in output and "optimizer.max_skipped_steps = 3" in output
    assert "Traceback" not in output
    assert metrics(tmp_path)[-1]["skipped_steps"] >= 3


def test_weights_of_another_run_start_a_new_one(single, tmp_path):
    """Against the source run: same weights at the start, fresh optimizer and counters."""
    output = train(tmp_path / "new", f"init.from={single}", "run.steps=1", "schedule.wake_every=0")
    assert "weights taken from" in output
    assert metrics(tmp_path / "new")[0]["loss_bits_per_byte"] < losses(single)[0] - 0.02
    assert "is not a run directory" in train(tmp_path / "none", f"init.from={tmp_path}", expect=2)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["model.widht=3", "model.dropout=2"], "2 problems in the config"),
        (["run.resume=must"], "has no checkpoint. Use run.resume=auto"),
        (["run.dir=/proc/upscale"], "run directory /proc/upscale cannot be used"),
        (["evaluation.every=10", "evaluation.tasks=[wq]"], "evaluation.tasks has no 'wq' (did you mean 'wp'?)"),
        (["--config", "configs/smok.yaml"], "did you mean configs/smoke.yaml?"),
    ],
)
def test_mistakes_exit_2_with_one_message(tmp_path, extra, message):
    output = train(tmp_path / "run", *extra, expect=2)
    assert message in output and "Traceback" not in output
    assert output.count("error:") == 1
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_start_on_a_full_disk_exits_1_and_works_when_there_is_room(tmp_path):
    """No mistake of the user's: a supervisor that starts it again must not be told that it is one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "test", disk], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        (disk / "ballast").write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize))
        output = train(disk / "run", "run.steps=1", expect=1)
        assert f"run directory {disk / 'run'} cannot be used now" in output and "Traceback" not in output
        (disk / "ballast").unlink()
        train(disk / "run", "run.steps=1")
        assert len(metrics(disk / "run")) == 1
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.parametrize("stage", [1, 3])
def test_a_start_asks_no_compiler(tmp_path, stage):
    """DeepSpeed would try which of its kernels could be built, and a rank killed meanwhile leaves the trial's files."""
    for name in ("cc", "c++", "gcc", "g++", "clang", "nvcc"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name} $@ >> {tmp_path}/called\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    words = command(tmp_path / "run", "run.steps=1", f"engine.zero_stage={stage}", "data.sources=[{kind: uniform}]")
    path = f"{tmp_path}:{os.environ['PATH']}"
    code, output = finish(start([sys.executable, "upscale/train.py", *words], PATH=path))
    assert code == 0, output
    assert not (tmp_path / "called").exists(), (tmp_path / "called").read_text()


def test_more_ranks_than_lanes_exit_2_on_every_rank_with_one_message(tmp_path):
    code, output = finish(start([*torchrun(3), *command(tmp_path, "data.lanes=2")]))
    assert code != 0 and output.count("3 ranks for data.lanes = 2") == 1, output


def test_a_directory_of_another_config_is_refused_and_untouched(single):
    before = {path: path.read_bytes() for path in single.rglob("*") if path.is_file()}
    changed = ["model.width=64", "model.block=llama", "optimizer.kind=muon", "engine.zero_stage=0", "data.lanes=6"]
    output = train(single, *changed, "tracking.log_every=2", expect=2)
    assert "model.block: was 'paper', now 'llama'" in output and "optimizer.kind: was 'adamw', now 'muon'" in output
    assert "model.width: was 32, now 64" in output and "data.lanes: was 12, now 6" in output
    assert "tracking.log_every" not in output
    assert "already holds a run" in train(single, "run.resume=never", expect=2)
    assert {path: path.read_bytes() for path in single.rglob("*") if path.is_file()} == before


def test_without_a_valid_checkpoint_nothing_starts_over(tmp_path):
    train(tmp_path, "run.steps=2")
    target = next(manifest.step_folder(tmp_path / "checkpoints", 2).glob("parameters*"))
    target.write_bytes(target.read_bytes()[:-1])
    output = train(tmp_path, expect=2)
    assert "no checkpoint in" in output and target.name in output


def test_minutes_end_a_run_on_every_rank_and_stay_counted(tmp_path):
    """So few that they are over with the first step: the next one is the last. Without them the run goes on."""
    few = ["run.minutes=1e-7", "schedule.wake_every=0", "engine.name=fsdp"]
    outputs = as_srun_would(2, command(tmp_path / "run", *few))
    assert "finished at step 2" in outputs[0], outputs
    assert [record["step"] for record in metrics(tmp_path / "run")] == [1, 2]
    assert "nothing left to do" in train(tmp_path / "run", *few)
    output = train(tmp_path / "run", *few[1:], "run.steps=4")
    assert "step 2, 24 instances" in output and [record["step"] for record in metrics(tmp_path / "run")] == [1, 2, 3, 4]
