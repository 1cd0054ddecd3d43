"""C files of the package, compiled on first use by the machine's compiler and kept in the user's cache."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

from upscale.errors import LaunchError, UserError

FLAGS = ("-O2", "-std=c99", "-shared", "-fPIC")
# Vectors as long as the machine has them, and the bits as the source says: products and sums are not contracted.
VECTOR_FLAGS = ("-O3", "-march=native", "-std=gnu99", "-ffp-contract=off", "-shared", "-fPIC")
COMPILERS = ("cc", "gcc", "clang")


@functools.cache
def triton_found() -> bool:
    """Whether kernels in Triton can be used: it comes with torch's CUDA packages for Linux, but not with all others."""
    return importlib.util.find_spec("triton") is not None


def check_kernel_compiler(device_type: str) -> None:
    """Checks that Triton, which every run on a GPU uses, can compile what launches its kernels: C with Python's header.

    Raises LaunchError, since nodes of one run may differ. Without it the first draw would fail, on some node.
    """
    if device_type != "cuda" or not triton_found():
        return
    # As Triton chooses it.
    command = shlex.split(os.environ.get("CC", "")) or [next(filter(shutil.which, ("gcc", "clang")), "gcc")]
    header = sysconfig.get_path("include")
    try:
        done = subprocess.run(
            [*command, "-fsyntax-only", f"-I{header}", "-x", "c", "-"],
            input="#include <Python.h>\n",
            capture_output=True,
            text=True,
        )
        failed = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        failed = str(error)
    if failed:
        raise LaunchError(
            f"node {platform.node()}: Triton compiles for the GPU with {shlex.join(command)!r} and {header}/Python.h, "
            f"and that fails:\n{failed}\nInstall gcc and Python's headers on every node (python3-dev or "
            "python3-devel, or a Python of conda or uv, which brings them), or set CC to a C compiler."
        )


def description() -> str | None:
    """The first line of what the C compiler says of its version; None where there is none, or it fails."""
    try:
        done = subprocess.run([*_compiler(), "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.splitlines()), None) if done.returncode == 0 else None


def available(source: Path, flags: Sequence[str] = FLAGS) -> bool:
    """Whether `library` has what it needs: a C compiler, or what one made before."""
    return (_cache() / _name(source, flags)).is_file() or bool(shutil.which(_compiler()[0]))


def library(source: Path, needed_by: str, flags: Sequence[str] = FLAGS) -> ctypes.CDLL:
    """The shared library of one C file.

    Its name holds a hash of the source, the flags and the machine's kind, with the processor's features where the flags
    say native; so a cache may be shared by nodes and versions. It appears complete or not at all, so ranks may compile
    at once. The cache is $XDG_CACHE_HOME/upscale or ~/.cache/upscale, or a temporary folder where that cannot be
    written. Raises UserError, which names `needed_by`, when there is no compiler or it fails.
    """
    name, folder = _name(source, flags), _cache()
    if not (folder / name).is_file():
        folder = _compile(source, folder, name, needed_by, flags)
    try:
        return ctypes.CDLL(str(folder / name))
    except OSError as error:
        raise UserError(
            f"{needed_by} was compiled but cannot be loaded: {error}. Set XDG_CACHE_HOME to a folder that may hold "
            "programs (not mounted noexec), and remove the damaged file if there is one."
        ) from None


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "upscale"


def _name(source: Path, flags: Sequence[str]) -> str:
    machine = [platform.system(), platform.machine()]
    information = Path("/proc/cpuinfo")
    if "-march=native" in flags and information.exists():
        # The first processor's flags: "flags" on x86, "Features" on Arm.
        lines = information.read_text().splitlines()
        machine.append(next((line for line in lines if line.startswith(("flags", "Features"))), ""))
    key = hashlib.sha256(source.read_bytes() + repr((tuple(flags), *machine)).encode()).hexdigest()[:16]
    return f"{source.stem}-{key}.so"


def _compiler() -> list[str]:
    """The command that CC gives, or the first of `COMPILERS` that there is."""
    return shlex.split(os.environ.get("CC", "")) or [next(filter(shutil.which, COMPILERS), "")]


def _compile(source: Path, folder: Path, name: str, needed_by: str, flags: Sequence[str]) -> Path:
    """Compiles into the folder, or another one when that cannot be written; returns the one used."""
    command, chosen = _compiler(), os.environ.get("CC", "").strip()
    if not shutil.which(command[0]):
        missing = f"CC={chosen!r} names none" if chosen else f"there is no {', '.join(COMPILERS)}"
        raise UserError(
            f"{needed_by} runs as compiled code and needs a C compiler on every node: {missing}. Install gcc (by the "
            "system's package, `module load gcc` or `conda install gcc`), set CC to one, or choose another source."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(suffix=".so", dir=folder)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="upscale-"))
        handle, temporary = tempfile.mkstemp(suffix=".so", dir=folder)
    os.close(handle)
    try:
        done = subprocess.run([*command, *flags, "-o", temporary, str(source)], capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{needed_by} could not be compiled by {shlex.join(command)}:\n{done.stderr.strip()}")
        os.replace(temporary, folder / name)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return folder
