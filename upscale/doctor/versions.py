"""Versions: of drivers and libraries, and of everything that decides rows, which must be equal on all ranks."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import platform
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch

import upscale
from upscale.config import files as config_files
from upscale.doctor.base import PROBLEM, Check, Record, Session, flag_unequal
from upscale.errors import LaunchError
from upscale.machine import accelerator, compiler

PACKAGE_FILES = (".py", ".c", ".json")
SAME_ENVIRONMENT = "Give every node the same environment: one on a shared file system, or one container"
SAME_CLONE = "Start all ranks from one clone on a shared file system, or check out the same commit on every node"
SAME_DRIVER = "Ask the site to install one driver on all nodes, or leave these nodes out (sbatch --exclude=NODE)"
MUST_BE_EQUAL = {
    "package files": SAME_CLONE,
    "upscale": SAME_CLONE,
    "commit": SAME_CLONE,
    "config": "Start all ranks with the same command, and keep the config file on a shared file system",
    **dict.fromkeys(("python", "torch", "triton", "zlib", "numpy", "deepspeed", "mup"), SAME_ENVIRONMENT),
    "how sources compute": "Rows would depend on the node. Install a C compiler (CPU) or Triton (GPU) on every node",
    "device": "Ranks of one run wait for the slowest device. Ask for nodes of one kind (sbatch --constraint)",
    "driver": SAME_DRIVER,
    "CUDA of torch": SAME_ENVIRONMENT,
    "NCCL": SAME_ENVIRONMENT,
}
"""What to do where one of these differs between ranks."""
NEEDED_TO_GO_ON = ("package files", "upscale", "torch")
"""Where these differ, ranks would not even run the same checks."""


class Versions(Check):
    kind = "versions"

    def measure(self, session: Session) -> list[Record]:
        found: dict[str, str | None] = {
            "package files": package_digest(),
            "config": _digest(json.dumps(config_files.as_tree(session.config), sort_keys=True).encode()),
            **config_files.versions(),
            "torch": torch.__version__,
            "triton": version("triton"),
            "zlib": zlib.ZLIB_RUNTIME_VERSION,
            "how sources compute": methods(session),
            "device": device_name(session.device),
            "vector instructions": torch.backends.cpu.get_cpu_capability(),
        }
        if session.device.type == "cuda":
            supported = accelerator.driver_cuda_version()
            found |= {
                "driver": accelerator.driver_version() or "unknown",
                "CUDA of the driver": ".".join(map(str, supported)) if supported else "unknown",
                "CUDA of torch": torch.version.cuda,
                "NCCL": ".".join(map(str, torch.cuda.nccl.version())),
            }
        records = [self.record(session, name, value) for name, value in found.items()]
        return [*records, self._compiler(session)]

    def judge(self, records: Sequence[Record], session: Session) -> list[Record]:
        return flag_unequal(records, MUST_BE_EQUAL)

    def _compiler(self, session: Session) -> Record:
        problem = None
        try:
            compiler.check_kernel_compiler(session.device.type)
        except LaunchError as error:
            problem = str(error)
        return self.record(session, "C compiler", compiler.description() or "none", problem=problem)


def may_go_on(records: Sequence[Record]) -> bool:
    """Whether all ranks have the code and the torch that the other checks need them to share."""
    return not any(one.name in NEEDED_TO_GO_ON and one.verdict == PROBLEM for one in records)


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@functools.cache
def package_digest() -> str:
    """A digest of the names and contents of the package's files, which tells more than a commit with changes."""
    top, content = Path(upscale.__file__).parent, hashlib.sha256()
    for path in sorted(top.rglob("*")):
        if path.suffix in PACKAGE_FILES and path.is_file():
            content.update(path.relative_to(top).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return content.hexdigest()[:16]


def methods(session: Session) -> str:
    """How each source of the config computes on this device: another way may round to other rows."""
    config = session.config
    if config.data.kind == "corpus":
        return "corpus"
    found = [source.build(config.model.vocabulary).method(session.device) for source in config.data.sources]
    return ", ".join(found)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
