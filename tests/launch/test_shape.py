"""How the follow-up jobs of a large run are computed: as planned where there are GPUs, else as the run itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from upscale.config import Config
from upscale.config import files as config_files
from upscale.errors import UserError
from upscale.launch.slurm import questions, shape
from upscale.planning import memory

FINETUNING = "configs/finetune_wp.yaml"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A pre-training of width 4096 at stage 3, as its config.yaml names it."""
    directory = tmp_path_factory.mktemp("runs") / "w4096"
    directory.mkdir()
    config = config_files.load(
        "configs/w4096.yaml", ["engine.precision=bf16", "engine.name=deepspeed", "engine.zero_stage=3"]
    ).resolved()
    config_files.write(config, directory / "config.yaml")
    return directory


@pytest.fixture
def gpus(tmp_path, monkeypatch):
    """Have this machine's driver name GPUs."""

    def answer(text: str) -> None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return answer


def asked(capsys, run: Path, *words: str) -> tuple[list[str], Config]:
    """The overrides that `slurm/common.sh` gets, and the fine-tuning they make."""
    assert questions.main(["shape", str(run), "--config", FINETUNING, *words]) == 0
    found = capsys.readouterr().out.split()
    return found, config_files.load(FINETUNING, [*found, *[word for word in words if word[0] != "-"]]).resolved()


def test_a_large_model_is_fine_tuned_as_it_fits(run, gpus, capsys):
    """On a node of 8 H200 the fine-tuning's own stage 1 would not fit: 8 + 12 / 8 bytes a parameter and activations."""
    gpus('for gpu in 1 2 3; do echo "NVIDIA H200, 143771"; done; echo "NVIDIA H200, 143000"')
    found, config = asked(capsys, run, "--nodes=1", "--ranks-per-node=8")
    assert (config.model.width, config.model.depth, config.engine.precision) == (4096, 59, "bf16")
    bytes_free = 143000 * 2**20
    assert memory.largest_micro_batch(config, 8, bytes_free) >= 1, found
    plain = config_files.load(FINETUNING, [*shape.model_of(run), "engine.precision=bf16"]).resolved()
    assert memory.largest_micro_batch(plain, 8, bytes_free) == 0


def test_what_fits_nowhere_says_on_how_many_nodes_it_does(run, gpus, capsys):
    gpus('echo "NVIDIA A100-SXM4-40GB, 40960"')
    with pytest.raises(UserError, match=r"1 x 4 GPUs of 43 GB under no .* --nodes=\d+ is enough") as caught:
        asked(capsys, run, "--nodes=1", "--ranks-per-node=4")
    nodes = str(caught.value).split("--nodes=")[1].split()[0]
    asked(capsys, run, f"--nodes={nodes}", "--ranks-per-node=4")
    gpus('echo "NVIDIA T4, 100"')
    with pytest.raises(UserError, match="Take GPUs with more memory"):
        asked(capsys, run, "--nodes=1", "--ranks-per-node=4")


@pytest.mark.parametrize("answer", ["exit 9", "true", "echo Failed, badly", None])
def test_without_gpus_it_is_computed_as_the_run_was(run, gpus, capsys, monkeypatch, answer):
    if answer is None:
        monkeypatch.setenv("PATH", "/nowhere")
    else:
        gpus(answer)
    _, config = asked(capsys, run, "--nodes=1", "--ranks-per-node=8")
    assert (config.engine.name, config.engine.zero_stage, config.model.checkpointing) == ("deepspeed", 3, "full")


def test_what_the_user_gives_is_the_users(run, gpus, capsys):
    gpus('echo "NVIDIA H200, 143771"')
    found, config = asked(capsys, run, "--nodes=1", "--ranks-per-node=8", "engine.name=fsdp", "engine.precision=fp32")
    assert not [word for word in found if word.startswith(("engine.name", "engine.precision"))]
    assert (config.engine.name, config.engine.precision, config.model.checkpointing) == ("fsdp", "fp32", "full")
