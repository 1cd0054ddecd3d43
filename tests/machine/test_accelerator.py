"""Where a CPU may be used, against machines made of files and drivers that answer as NVIDIA's do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.test_train import ROOT, environment
from tests.tiny import overrides
from upscale.errors import LaunchError
from upscale.machine import accelerator


@pytest.fixture
def no_gpu_usable(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    "asked", [{"CUDA_VISIBLE_DEVICES": ""}, {"CUDA_VISIBLE_DEVICES": "-1"}, {"DS_ACCELERATOR": "cpu"}]
)
def test_a_cpu_that_is_asked_for_is_used(asked):
    assert accelerator.device_type({"SLURM_GPUS_ON_NODE": "8", **asked}) == "cpu"


def test_a_machine_without_gpus_uses_its_cpu(no_gpu_usable, monkeypatch):
    monkeypatch.setattr(accelerator, "gpus_here", lambda _environment: None)
    assert accelerator.device_type({}) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert accelerator.device_type({}) == "cuda"


def machine(root: Path, *, devices: int = 0, pci: tuple[str, str] | None = None) -> Path:
    (root / "dev").mkdir(parents=True)
    for number in range(devices):
        (root / "dev" / f"nvidia{number}").touch()
    (root / "dev/nvidiactl").touch()
    if pci:
        folder = root / "sys/bus/pci/devices/0000:01:00.0"
        folder.mkdir(parents=True)
        for name, content in zip(("vendor", "class"), pci, strict=True):
            (folder / name).write_text(f"{content}\n")
    return root


def test_gpus_are_seen_without_a_driver(tmp_path):
    """In the allocation, as device files, on the PCI bus; a network card of NVIDIA's and another's GPU are none."""
    seen = accelerator.gpus_here
    assert "SLURM_GPUS_ON_NODE=4" in seen({"SLURM_GPUS_ON_NODE": "4"}, machine(tmp_path / "slurm"))
    assert "/dev/nvidia0, /dev/nvidia1" in seen({}, machine(tmp_path / "files", devices=2))
    assert "0000:01:00.0" in seen({}, machine(tmp_path / "pci", pci=("0x10de", "0x030200")))
    assert seen({}, machine(tmp_path / "network", pci=("0x10de", "0x020700"))) is None
    assert seen({}, machine(tmp_path / "other", pci=("0x1002", "0x030000"))) is None
    assert seen({"SLURM_GPUS_ON_NODE": "0"}, machine(tmp_path / "none")) is None


@pytest.mark.parametrize(
    ("built", "driver", "module", "words"),
    [
        ("13.2", (12, 4), "550.54.15", ["CUDA 13.2", "580.65.06", "550.54.15", "CUDA 12.4 at most"]),
        ("13.2", None, None, ["CUDA 13.2", "580.65.06", "no NVIDIA driver answers"]),
        ("12.6", (12, 2), "535.1", ["CUDA 12.6", "525.60.13", "CUDA 12.2, but it reports: no CUDA GPUs are available"]),
        (None, (13, 0), "580.65.06", ["without CUDA"]),
    ],
)
def test_the_versions_found_and_wanted_are_said(monkeypatch, no_gpu_usable, built, driver, module, words):
    def fail():
        raise RuntimeError("no CUDA GPUs are available.")

    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.cuda, "init", fail)
    monkeypatch.setattr(accelerator, "driver_cuda_version", lambda: driver)
    monkeypatch.setattr(accelerator, "driver_version", lambda: module)
    with pytest.raises(LaunchError) as raised:
        accelerator.device_type({"SLURM_GPUS_ON_NODE": "1"})
    message = str(raised.value)
    assert all(word in message for word in [*words, torch.__version__, "CUDA_VISIBLE_DEVICES= "]), message


def test_the_kernel_module_tells_its_version(tmp_path):
    """Both forms of the file: the closed module's and the open one's."""
    path = tmp_path / "version"
    path.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version: gcc 13"
    )
    assert accelerator.driver_version(path) == "550.54.15"
    path.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n")
    assert accelerator.driver_version(path) == "580.65.06"
    assert accelerator.driver_version(tmp_path / "missing") is None


LIBRARY = '#include <stdlib.h>\nint cuDriverGetVersion(int *v) { *v = atoi(getenv("DRIVER")); return 0; }\n'


@pytest.mark.parametrize("verb", ["train", "sample", "bench"])
@pytest.mark.parametrize("driver", ["12040", "none"])
def test_no_command_computes_on_the_cpu_of_a_gpu_allocation(tmp_path, verb, driver):
    """Against a real library that answers as an old driver does, and against none."""
    if torch.cuda.is_available() or not torch.version.cuda:
        pytest.skip("needs a CUDA build of torch on a machine without usable GPUs")
    extra = {"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "1"}
    if driver != "none":
        (tmp_path / "driver.c").write_text(LIBRARY)
        build = ["cc", "-shared", "-fPIC", "-o", str(tmp_path / "libcuda.so.1"), str(tmp_path / "driver.c")]
        subprocess.run(build, check=True)
        extra |= {"LD_LIBRARY_PATH": str(tmp_path), "DRIVER": driver}
    given = {
        key: value
        for key, value in environment(**extra).items()
        if key not in ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR")
    }
    words = [sys.executable, "-c", "from upscale.cli import main; main()"]
    ended = subprocess.run(
        [*words, verb, *overrides(run__dir=tmp_path / "run")],
        cwd=ROOT,
        env=given,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 2 and "Traceback" not in ended.stderr, ended.stderr
    found = "CUDA 12.4 at most" if driver != "none" else "no NVIDIA driver answers"
    assert found in ended.stderr and f"built for CUDA {torch.version.cuda}" in ended.stderr, ended.stderr
    assert not (tmp_path / "run").exists()
