"""`upscale train` on the stand-in for a GPU: it ends with exit code 0, waits and launches no more than it should, and
has a context on its own device only. Losses mean nothing here: no kernel computes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.nullgpu import standin
from tests.ranks import free_port
from upscale.cli import prepare

MOST_WAITS, MOST_OPTIMIZER_LAUNCHES = 2, 100
QUIET = "tracking.wandb=disabled tracking.log_every=1000 evaluation.every=0 checkpoint.every=0".split()
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=2", "--master-port")
ENGINES = {
    **{f"stage {stage}": [f"engine.zero_stage={stage}"] for stage in range(4)},
    "fsdp": ["engine.name=fsdp"],
}


def train(folder: Path, *settings: str, config: str = "w1024", **how) -> standin.Done:
    arguments = ["upscale/train.py", "--config", f"configs/{config}.yaml", f"run.dir={folder / 'run'}", *settings]
    return standin.run(arguments, folder, timeout_seconds=900, **how)


def check(done: standin.Done, ranks: int = 1, devices: list[list[int]] | None = None) -> None:
    """Exit code, contexts, and what each step asks of the device after the first, which makes optimizer states."""
    assert done.code == 0, done.output[-4000:]
    assert len(done.reports) == ranks
    assert [report.contexts for report in done.reports] == (devices or [[rank] for rank in range(ranks)])
    for report in done.reports:
        passes, optimizer = report.steps("passes"), report.steps("optimizer")
        assert len(passes) == len(optimizer) >= 2
        for one, other in zip(passes[1:], optimizer[1:], strict=True):
            waits = one["waits"] + other["waits"]
            assert waits <= MOST_WAITS, (one["waits_at"], other["waits_at"])
            assert 0 < other["launches"] <= MOST_OPTIMIZER_LAUNCHES, other
            assert one["launches"] > 0


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "stage 3"])
def test_a_step_of_w1024_waits_at_most_twice_under_every_engine(engine, tmp_path):
    """At its own size; eager, because compiling it for each engine takes minutes, and not saved, which hashes 5 GB:
    w384 below is compiled, and w1024 saved."""
    settings = [*QUIET, *ENGINES[engine], "run.steps=3", "model.compile=false", "engine.micro_batch=16"]
    done = train(tmp_path, *settings, NULLGPU_SAVES="0")
    check(done)
    assert done.reports[0].peak_bytes > 429_000_000 * 16


def test_a_step_of_w384_under_stage_3_starts_and_its_optimizer_waits_twice(tmp_path):
    """On one GPU, where nothing is sharded, DeepSpeed waits for every module's weights; test_plan.py counts its waits
    as one rank of many."""
    done = train(tmp_path, *QUIET, *ENGINES["stage 3"], "run.steps=3", config="w384")
    assert done.code == 0, done.output[-4000:]
    (report,) = done.reports
    assert report.contexts == [0]
    for phase in report.steps("optimizer")[1:]:
        assert phase["waits"] <= MOST_WAITS and phase["launches"] <= MOST_OPTIMIZER_LAUNCHES, phase


TWO_RANKS = [*QUIET, "run.steps=3", "model.compile=false", "engine.micro_batch=32"]


@pytest.mark.parametrize("engine", ["fsdp", pytest.param("stage 1", marks=pytest.mark.slow)])
def test_two_ranks_of_torchrun_keep_to_their_own_devices(engine, tmp_path):
    """With both GPUs visible; the thread that draws ahead of rank 1 made a context on GPU 0."""
    launcher = (*TORCHRUN, str(free_port()))
    done = train(tmp_path, *TWO_RANKS, *ENGINES[engine], config="w384", launcher=launcher, devices=2)
    check(done, ranks=2)
    assert all(report.totals["collectives"] > 0 for report in done.reports)


def test_two_ranks_of_deepspeeds_launcher_keep_to_their_own_devices(tmp_path):
    launcher = (sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", str(free_port()))
    check(train(tmp_path, *TWO_RANKS, *ENGINES["stage 2"], config="w384", launcher=launcher, devices=2), ranks=2)


@pytest.mark.parametrize("visible", [1, 2])
def test_two_tasks_of_slurm_keep_to_their_own_devices(visible, tmp_path):
    """Two processes with the variables of an srun step, which see one GPU each (--gpus-per-task) or both."""
    port = free_port()
    settings = [*TWO_RANKS, *ENGINES["stage 1"], f"run.dir={tmp_path / 'run'}"]
    tasks = [
        standin.start(
            ["upscale/train.py", "--config", "configs/w384.yaml", *settings],
            tmp_path,
            devices=visible,
            SLURM_JOB_ID="7",
            SLURM_STEP_ID="0",
            SLURM_PROCID=str(rank),
            SLURM_LOCALID=str(rank),
            SLURM_STEP_NUM_TASKS="2",
            SLURM_STEP_TASKS_PER_NODE="2",
            SLURM_STEP_NODELIST="localhost",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        for rank in range(2)
    ]
    outputs = [task.communicate(timeout=900)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], outputs[0][-3000:]
    devices = [[0], [0]] if visible == 1 else [[0], [1]]
    check(standin.Done(0, outputs[0], standin.read_reports(tmp_path)), ranks=2, devices=devices)


@pytest.mark.parametrize(
    ("config", "how"),
    [("w384", []), ("w1024", ["model.compile=false"]), pytest.param("w1024", [], marks=pytest.mark.slow)],
    ids=["w384", "w1024, eager", "w1024"],
)
def test_a_run_evaluates_saves_resumes_stops_is_exported_and_fine_tuned(config, how, tmp_path):
    """The shipped configs. Compiled, there is one graph for each size, also when evaluation with its shorter input
    comes first."""
    run, weights = tmp_path / "run", {"w384": 28_766_472, "w1024": 429_216_026}[config]
    settings = ["evaluation.every=128", "evaluation.slices=8", "evaluation.tasks=[wp]", "checkpoint.every=128"]
    settings += ["tracking.wandb=disabled", "engine.micro_batch=16", *how]
    done = train(tmp_path, *settings, "run.steps=2", config=config)
    check(done)
    # Training at one size and evaluation at one; a thread that changed a global setting meanwhile once made a third.
    assert done.reports[0].graphs == (0 if how else 2)
    saves = done.reports[0].steps("save")
    assert saves and all(save["waits"] <= 2 < save["copies_to_host"] for save in saves), saves
    assert len((run / "evaluations.jsonl").read_text().splitlines()) >= 2
    record = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["peak_memory_gib"] > weights * 12 / 2**30

    arguments = ["upscale/train.py", "--config", f"configs/{config}.yaml", f"run.dir={run}", *settings]
    process = standin.start([*arguments, "tracking.log_every=1"], tmp_path)
    stop_after_a_step(process, run / "metrics.jsonl")
    done = standin.finish(process, tmp_path, 600)
    assert done.code == 75, done.output[-3000:]
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] > 2

    done = standin.run(["export", "--run", str(run), "--to", str(tmp_path / "model.safetensors")], tmp_path)
    assert done.code == 0 and (tmp_path / "model.safetensors").stat().st_size > weights * 4, done.output
    done = standin.run(["evaluate", "--run", str(run), "--tasks", "wp", "--slices", "8"], tmp_path)
    assert done.code == 0, done.output[-3000:]
    assert done.reports[0].contexts == [0] and done.reports[0].totals["launches"] > 0

    fine_tune(tmp_path, f"init.from={tmp_path / 'model.safetensors'}", f"model.width={config[1:]}", *how)


def fine_tune(folder: Path, *settings: str) -> None:
    """The shipped fine-tuning on Wikipedia, of a corpus made of the excerpt that ships."""
    corpus = folder / "corpora/wp"
    prepare.main(["wp", "--from", str(standin.REPOSITORY / "upscale/evaluation/texts/wp.xz"), "--to", str(corpus)])
    settings += ("run.steps=3", "engine.micro_batch=16", f"data.corpora=[{{path: {corpus}}}]")
    arguments = ["train", "--config", "configs/finetune_wp.yaml", f"run.dir={folder / 'finetune'}", *QUIET, *settings]
    done = standin.run(arguments, folder, timeout_seconds=900)
    check(done)
    assert "weights taken from" in done.output


def stop_after_a_step(process, metrics: Path) -> None:
    """Send SIGTERM once another line of metrics.jsonl is there."""
    before, deadline = len(metrics.read_text().splitlines()), time.monotonic() + 600
    while len(metrics.read_text().splitlines()) == before and process.poll() is None:
        assert time.monotonic() < deadline, "no step within 600 s"
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGTERM)


def test_nccls_recorder_has_the_collectives(tmp_path):
    """Of the nccl of this version of torch, whichever it is, with the variables that a run sets."""
    program = tmp_path / "record.py"
    program.write_text(
        "import os, pickle, sys, torch, torch.distributed as dist\n"
        "from pathlib import Path\n"
        "from upscale.distributed import flight_recorder\n"
        "from upscale.distributed.world import World\n"
        "folder = Path(sys.argv[1])\n"
        "(folder / flight_recorder.FOLDER).mkdir()\n"
        "os.environ.update(flight_recorder.variables(os.environ, 'cuda', folder, 600))\n"
        "world = World.join()\n"
        "dist.all_reduce(torch.zeros(8, device='cuda'))\n"
        "path = flight_recorder.dump(folder, 0)\n"
        "print('entries', len(pickle.loads(path.read_bytes())['entries']), flush=True)\n"
        "os._exit(0)\n"
    )
    done = standin.run([str(program), str(tmp_path)], tmp_path, watched=False)
    assert done.code == 0 and "entries 1" in done.output, done.output[-3000:]
