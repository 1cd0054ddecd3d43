"""Processes that begin where a fresh interpreter is after ten seconds of imports.

Servers import torch, DeepSpeed and the package once (tests/preloaded.py) and fork a child for every request. Imports
start no thread, so a child is as a fresh interpreter is after them: memory, environment, signals, threads, process
groups and exit code are its own. Two servers, because ranks must agree although their interpreters hash strings, and
so order sets, differently.
"""

from __future__ import annotations

import functools
import importlib
import os
import pickle
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Several ranks, perhaps one GPU; and the threads of several ranks on few cores would wait for each other.
SERVER_VARIABLES = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
# Read when the interpreter starts or a library is loaded: a process that needs other values cannot be forked.
READ_AT_IMPORT = ("ATEN", "CUDA", "DNNL", "DS_", "GOMP", "LANG", "LC_", "LD_", "MALLOC", "MKL", "OMP", "ONEDNN")
READ_AT_IMPORT += ("PYTHON", "TORCH", "TRITON")
NUMBER = struct.Struct("q")


class Forked:
    """A forked process that calls `function(*arguments)`, and the part of subprocess.Popen's interface that tests use.

    The function must be importable. `output` is the descriptor for standard output and error; without it they go to
    the pipe `stdout`.
    """

    def __init__(self, function: Callable, *arguments: object, output: int | None = None, server: int = 0):
        self.args, self.returncode, self.stdout = (function, *arguments), None, None
        self._reader: threading.Thread | None = None
        self._rest = ""
        self._status, status = os.pipe()
        request = os.memfd_create("request")
        os.write(request, pickle.dumps((reference(function), arguments)))
        os.lseek(request, 0, os.SEEK_SET)
        given = output
        if given is None:
            reading, output = os.pipe()
            self.stdout = os.fdopen(reading)
        socket.send_fds(_server(server), [b"fork"], [request, status, output])
        for number in (request, status, *([] if given is not None else [output])):
            os.close(number)
        self.pid = self._told()

    def _told(self) -> int:
        number = os.read(self._status, NUMBER.size)
        assert number, "the server that forks processes has died; its output says why"
        return NUMBER.unpack(number)[0]

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative for a signal. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = os.waitstatus_to_exitcode(self._told())
            os.close(self._status)
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """What is left of the output, and the end. Raises subprocess.TimeoutExpired, after which it may be repeated."""
        if self._reader is None:
            self._reader = threading.Thread(target=self._read, daemon=True)
            self._reader.start()
        self._reader.join(timeout)
        if self._reader.is_alive():
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(timeout)
        return self._rest, None

    def _read(self) -> None:
        with self.stdout:
            self._rest = self.stdout.read()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    words: list[str], environment: Mapping[str, str], folder: Path = ROOT, server: int = 0
) -> Forked | subprocess.Popen:
    """A command, started: `python FILE ...`, `python -m MODULE ...`, `python -c CODE ...` and the environment's scripts
    by a fork, everything else as a fresh process. Standard error goes to the pipe `stdout` too.
    """
    own = {**os.environ, **SERVER_VARIABLES}
    names = [name for name in {*own, *environment} if name.startswith(READ_AT_IMPORT) and name != "PYTHONPATH"]
    same_imports = all(own.get(name) == environment.get(name) for name in names)
    if same_imports and Path(words[0]).parent == Path(sys.executable).parent:
        own_words = words[words[0] == sys.executable :]
        return Forked(_run_python, own_words, dict(environment), str(folder), server=server)
    return start_fresh(words, environment, folder)


def start_fresh(words: list[str], environment: Mapping[str, str], folder: Path = ROOT) -> subprocess.Popen:
    """The same command by an interpreter that imports everything itself."""
    return subprocess.Popen(
        words, cwd=folder, env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _run_python(words: list[str], environment: dict[str, str], folder: str) -> None:
    """What the interpreter does with its command line."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    option, *rest = words
    if option == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif option == "-m":
        sys.argv, sys.path[0] = rest, folder
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, str(Path(option).resolve().parent)
        runpy.run_path(option, run_name="__main__")


def reference(function: Callable) -> tuple[str, str]:
    """Module and name under which another process finds the function, also when this program defines it."""
    module = sys.modules[function.__module__]
    name = module.__spec__.name if function.__module__ == "__main__" else function.__module__
    return name, function.__qualname__


def resolve(module: str, name: str) -> Callable:
    return getattr(importlib.import_module(module), name)


@functools.cache
def _server(index: int) -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.Popen(
        [sys.executable, "-c", f"from tests import forks; forks.serve({theirs.fileno()})()"],
        cwd=ROOT,
        env={**os.environ, **SERVER_VARIABLES, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    return ours


def serve(control_descriptor: int) -> Callable:
    """In each forked process, the call that it is for; the server itself ends with the process that asks."""
    from tests import preloaded  # noqa: F401

    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"a process of {threads} threads must not fork"
    control = socket.socket(fileno=control_descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Control-C ends pytest, and that ends the server
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the watchers
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 16, 3)
        if not message:
            return lambda: None
        if os.fork() == 0:
            control.close()
            return _watched(*descriptors)
        for number in descriptors:
            os.close(number)


def _watched(request: int, status: int, output: int) -> Callable:
    """Fork the process that is asked for, and in the parent tell its number and then its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child:
        for number in (0, 1, 2, request, output):
            os.close(number)
        os.write(status, NUMBER.pack(child))
        os.write(status, NUMBER.pack(os.waitpid(child, 0)[1]))
        os._exit(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for number in (status, output):
        os.close(number)
    with open(request, "rb") as file:
        (module, name), arguments = pickle.load(file)
    return functools.partial(resolve(module, name), *arguments)
