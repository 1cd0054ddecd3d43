"""Whether this process computes on GPUs or on a CPU: never on a CPU by accident where GPUs were paid for."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path

import torch

from upscale.errors import LaunchError

OLDEST_DRIVERS = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
"""For each major version of CUDA the oldest driver that runs all its minor versions (NVIDIA's compatibility table)."""
NVIDIA, DISPLAY_CLASS = "0x10de", "0x03"
HOW_TO_ASK = "To train on the CPU all the same, say so: CUDA_VISIBLE_DEVICES= (empty)."


def device_type(environment: Mapping[str, str] | None = None) -> str:
    """What to compute on: "cuda" where PyTorch can use a GPU, "cpu" where that is asked for or there is none.

    A CPU is asked for by an empty CUDA_VISIBLE_DEVICES or by DS_ACCELERATOR=cpu. Raises LaunchError where this machine
    has NVIDIA GPUs, or Slurm has allocated some, that PyTorch cannot use: the versions found and the ones wanted.
    """
    environment = os.environ if environment is None else environment
    if cpu_is_asked_for(environment):
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if found := gpus_here(environment):
        raise LaunchError(f"{found}, but PyTorch {torch.__version__} cannot use them: {why_unusable()}. {HOW_TO_ASK}")
    return "cpu"


def cpu_is_asked_for(environment: Mapping[str, str]) -> bool:
    # NoDevFiles is what Slurm writes for a step that was given no GPU.
    none_visible = environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "NoDevFiles")
    return none_visible or environment.get("DS_ACCELERATOR") == "cpu"


ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def let_segments_grow(environment: MutableMapping[str, str] | None = None) -> None:
    """Let PyTorch's allocator extend what it has reserved, before it is first used; what the user has set stays.

    Without it, sizes that change (blocks that wake up, microbatches of several sizes, gathered weights) leave gaps that
    fit nothing: 2 to 18 % of the peak at widths 1024 to 4096.
    """
    environment = os.environ if environment is None else environment
    if not any(name in environment for name in ALLOCATOR_VARIABLES):
        environment[ALLOCATOR_VARIABLES[0]] = "expandable_segments:True"


def gpus_here(environment: Mapping[str, str], root: Path = Path("/")) -> str | None:
    """What tells of NVIDIA GPUs in this allocation or machine, whether or not a driver answers; None without any."""
    allocated = environment.get("SLURM_GPUS_ON_NODE", "")
    if allocated.isdigit() and int(allocated):
        return f"Slurm has allocated GPUs on this node (SLURM_GPUS_ON_NODE={allocated})"
    if devices := sorted(path.name for path in (root / "dev").glob("nvidia[0-9]*")):
        return f"this machine has NVIDIA GPUs (/dev/{', /dev/'.join(devices)})"
    for device in sorted((root / "sys/bus/pci/devices").glob("*")):
        if _content(device / "vendor") == NVIDIA and _content(device / "class").startswith(DISPLAY_CLASS):
            return f"this machine has NVIDIA GPUs (PCI device {device.name})"
    return None


def _content(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def why_unusable() -> str:
    """Why PyTorch cannot use a GPU: the CUDA version it was built for and what the driver here can do."""
    built = torch.version.cuda
    if built is None:
        return "it was built without CUDA. Install a build for GPUs"
    needed = OLDEST_DRIVERS.get(int(built.split(".")[0]))
    wanted = f"it was built for CUDA {built}" + (f", which needs driver {needed} or newer" if needed else "")
    newer = "Update the driver, or install a PyTorch for an older CUDA"
    supported, module = driver_cuda_version(), driver_version()
    if supported is None:
        return f"{wanted}, and no NVIDIA driver answers (libcuda.so.1 cannot be loaded). Install one"
    found = f"the driver found{f', {module},' if module else ''} supports CUDA {supported[0]}.{supported[1]}"
    if supported[0] < int(built.split(".")[0]):
        return f"{wanted}, and {found} at most. {newer}"
    return f"{wanted}, and {found}, but it reports: {_torch_says()}. Check `nvidia-smi` and CUDA_VISIBLE_DEVICES"


def driver_cuda_version() -> tuple[int, int] | None:
    """The newest (major, minor) version of CUDA that the driver supports; None where no driver answers."""
    version = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if failed or not version.value else (version.value // 1000, version.value % 1000 // 10)


def driver_version(path: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """The version of the driver's kernel module, such as 550.54.15; None where it is not loaded."""
    words = _content(path).split()
    return next((word for word in words if word.count(".") >= 1 and word.replace(".", "").isdigit()), None)


def _torch_says() -> str:
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return " ".join(str(error).split())[:200].rstrip(".")
    return "no device"
