"""A GPU that does nothing, for machines without one: the CUDA builds of torch, DeepSpeed, FSDP2, Triton and Inductor
run on it as they are.

A CUDA runtime, cuBLAS, NCCL and driver made of a few hundred lines of C are loaded before the real ones. Launches,
waits, copies and collectives are counted and never done; torch's own allocator accounts for memory as on a card.
README.md says what it proves and what it cannot.

    reason = standin.unavailable()                 # None, or why it cannot be built here
    done = standin.run(["upscale/train.py", "--config", "configs/w384.yaml"], folder, devices=2)
    done.code, done.output, done.reports           # one Report for each process that ended, by rank
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests import forks

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
LIBRARY = ("runtime.c", "memory.c", "libraries.c")
SOURCES = (*LIBRARY, "driver.c", "management.c", "nullgpu.h")
CALLS = re.compile(r"U ((?:__)?(?:cuda|cublas|cupti|nccl)[A-Z]\w*)")
LAUNCHER_VARIABLES = re.compile(
    r"SLURM_.*|(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_\w+|CUDA_VISIBLE_DEVICES|DS_ACCELERATOR"
)


@functools.cache
def unavailable() -> str | None:
    """Why the stand-in cannot be built and used here, None if it can."""
    if sys.platform != "linux":
        return "the stand-in for a GPU needs Linux"
    if not (shutil.which("gcc") and shutil.which("nm")):
        return "the stand-in for a GPU needs gcc and nm (binutils)"
    import torch

    if not (torch.version.cuda or "").startswith("13"):
        return f"the stand-in for a GPU needs torch built for CUDA 13; this is torch {torch.__version__}"
    if torch.cuda.is_available():
        return "this machine has a GPU: the tests marked gpu run on it"
    if _headers() is None:
        return "the stand-in for a GPU needs the headers of CUDA 13, which come with Triton: pip install triton"
    return None


def _headers() -> Path | None:
    """The folder of cuda_runtime_api.h: Triton brings all of it, torch's own packages only a part."""
    triton = importlib.util.find_spec("triton")
    folders = [Path(triton.origin).parent / "backends/nvidia/include"] if triton else []
    folders.append(Path("/usr/local/cuda/include"))
    for folder in folders:
        header = folder / "cuda_runtime_api.h"
        complete = header.is_file() and (folder / "crt/host_defines.h").is_file()
        if complete and re.search(r"define CUDART_VERSION\s+13", header.read_text()):
            return folder
    return None


@functools.cache
def build() -> Path:
    """The folder of the libraries, built once for each version of the sources and of torch, in the user's cache."""
    import torch

    key = hashlib.sha256((torch.__version__ + CALLS.pattern).encode())
    for name in SOURCES:
        key.update((HERE / name).read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "upscale-nullgpu"
    folder = cache / key.hexdigest()[:16]
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        _compile(made)
        try:
            made.rename(folder)
        except OSError:
            assert folder.is_dir(), folder  # another process was faster
    return folder


def _compile(folder: Path) -> None:
    flags = ["gcc", "-O1", "-w", "-shared", "-fPIC", f"-I{_headers()}"]
    library = folder / "libnullgpu.so"
    sources = [HERE / name for name in LIBRARY]
    _call([*flags, "-o", library, *sources, "-ldl", "-lpthread"])
    # What torch calls beside that need only succeed.
    own = set(re.findall(r" T (\w+)", _call(["nm", "-D", "--defined-only", library])))
    import torch

    wanted: set[str] = set()
    for path in (Path(torch.__file__).parent / "lib").glob("lib*cuda*.so"):
        wanted |= set(CALLS.findall(_call(["nm", "-D", "--undefined-only", path])))
    for name in ("libtorch_python.so", "libtorch_cpu.so"):
        found = _call(["nm", "-D", "--undefined-only", Path(torch.__file__).parent / "lib" / name])
        wanted |= set(CALLS.findall(found))
    rest = folder / "rest.c"
    rest.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in sorted(wanted - own)))
    _call([*flags, "-o", library, *sources, rest, "-ldl", "-lpthread"])
    management = folder / "libnvidia-ml.so.1"
    _call([*flags, "-Wl,-soname,libnvidia-ml.so.1", "-o", management, HERE / "management.c"])
    _call([*flags, "-Wl,-soname,libcuda.so.1", "-o", folder / "libcuda.so.1", HERE / "driver.c", "-ldl"])


def _call(command: list) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stderr}"
    return done.stdout


def environment(devices: int = 1, memory_gib: float = 139.8, **more: str) -> dict[str, str]:
    """This process's environment without a launcher's variables, for a process on the stand-in."""
    folder = build()
    given = {name: value for name, value in os.environ.items() if not LAUNCHER_VARIABLES.fullmatch(name)}
    paths = filter(None, [str(REPOSITORY), given.get("PYTHONPATH")])
    return {
        **given,
        "PYTHONPATH": os.pathsep.join(paths),
        "LD_PRELOAD": str(folder / "libnullgpu.so"),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [str(folder), given.get("LD_LIBRARY_PATH")])),
        "TRITON_LIBCUDA_PATH": str(folder),
        "TRITON_CACHE_DIR": str(folder.parent / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder.parent / "inductor"),
        "OMP_NUM_THREADS": "1",
        "NULLGPU_DEVICES": str(devices),
        "NULLGPU_GIB": str(memory_gib),
        **more,
    }


@dataclass
class Report:
    """What one process asked of its device. A phase is a dict with its `name` and what it added to each total."""

    totals: dict[str, int]
    """launches, waits, copies_to_host, copies_to_device, collectives"""
    phases: list[dict]
    """draw, passes (forward and backward), optimizer and save of each step, with `waits_at`: {line of code: count}"""
    waits_at: dict[str, int]
    contexts: list[int]
    """Devices on which the process has a context."""
    peak_bytes: int
    reserved_bytes: int
    graphs: int
    """Graphs that Dynamo compiled."""

    def steps(self, name: str) -> list[dict]:
        return [phase for phase in self.phases if phase["name"] == name]


@dataclass
class Done:
    code: int
    output: str
    """Standard output and standard error."""
    reports: list[Report]


def command(arguments: list[str]) -> list[str]:
    """The watched program: a file of the project, or a verb of `upscale`, and its arguments."""
    return [str(HERE / "watch.py"), *arguments]


def run(
    arguments: list[str],
    folder: Path,
    launcher: tuple[str, ...] = (sys.executable,),
    timeout_seconds: float = 300,
    watched: bool = True,
    **settings,
) -> Done:
    """Run a program on the stand-in by a launcher; `folder` gets the reports, `settings` are those of `environment`."""
    return finish(start(arguments, folder, launcher, watched, **settings), folder, timeout_seconds)


@functools.cache
def servers() -> forks.Servers:
    """What forks watched processes, which then need not import everything."""
    return forks.Servers(environment, "tests.nullgpu.preloaded", number=1)


def start(
    arguments: list[str], folder: Path, launcher: tuple[str, ...] = (sys.executable,), watched: bool = True, **settings
) -> forks.Forked | subprocess.Popen:
    """As `run`, without waiting for it."""
    reports = folder / "reports"
    reports.mkdir(parents=True, exist_ok=True)
    variables = environment(**settings, NULLGPU_REPORTS=str(reports))
    if watched:
        return forks.start([*launcher, *command(arguments)], variables, servers=servers(), own_session=True)
    return forks.start_fresh([*launcher, *arguments], variables, own_session=True)


def finish(process: subprocess.Popen, folder: Path, timeout_seconds: float = 300) -> Done:
    """Wait for a started program; when it is late, end it and all it started, and raise AssertionError."""
    try:
        output, _ = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        output, _ = process.communicate()
        raise AssertionError(f"not finished after {timeout_seconds} s:\n{output[-4000:]}") from None
    return Done(process.returncode, output, read_reports(folder))


def read_reports(folder: Path) -> list[Report]:
    """The reports since the last call, by rank."""
    files = sorted((folder / "reports").glob("rank-*.json"))
    reports = [Report(**json.loads(path.read_text())) for path in files]
    for path in files:
        path.unlink()
    return reports
