"""Processes that begin where a fresh interpreter is after ten seconds of imports.

Servers import torch, DeepSpeed and the package once (tests/preloaded.py) and fork a child for every request. Imports
start no thread, so a child is as a fresh interpreter is after them: memory, environment, signals, threads, process
groups and exit code are its own. Two servers, because ranks must agree although their interpreters hash strings, and
so order sets, differently. Python commands that a forked one starts, such as the ranks of a launcher, are forked too.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import itertools
import os
import pickle
import runpy
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from upscale.launch.signals import SUPERVISOR

ROOT = Path(__file__).parents[1]
# Several ranks, perhaps one GPU; and the threads of several ranks on few cores would wait for each other.
SERVER_VARIABLES = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
# Read when the interpreter starts or a library is loaded: a process that needs other values cannot be forked.
READ_AT_IMPORT = ("ATEN", "CUDA", "DNNL", "DS_", "GOMP", "LANG", "LC_", "LD_", "MALLOC", "MKL", "OMP", "ONEDNN")
READ_AT_IMPORT += ("PYTHON", "TORCH", "TRITON")
# Read when they are used. Launchers set some of them for their ranks.
READ_LATER = ("CUDA_VISIBLE_DEVICES", "PYTHONPATH", "TORCHCOMM", "TORCHELASTIC", "TORCH_NCCL")
NUMBER = struct.Struct("q")
LONGEST_COMMAND_LINE = 16384
OWN_SESSION = b"session"
OPTIONS = ("-c", "-m", "-u")
"""Those of the interpreter that a fork obeys."""


class Servers:
    """Servers that import the module `preload`, once the first process is asked for, in the environment `variables()`.

    A command may be forked when it has that environment. What libraries have set in ours since, it has as well.
    """

    def __init__(self, variables: Callable[[], Mapping[str, str]], preload: str = "tests.preloaded", number: int = 2):
        self.variables, self.preload, self.number = variables, preload, number
        self.sockets: list[socket.socket] = []
        self.turns = itertools.count()

    def start(self) -> None:
        variables = self.variables()
        path = os.pathsep.join([str(ROOT), *filter(None, [variables.get("PYTHONPATH")])])
        while len(self.sockets) < self.number:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            program = f"from tests import forks; forks.serve({theirs.fileno()}, {self.preload!r})()"
            room = "room for the command lines of what is forked".ljust(LONGEST_COMMAND_LINE)
            subprocess.Popen(
                [sys.executable, "-c", program, room],
                cwd=ROOT,
                env={**variables, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
            theirs.close()
            self.sockets.append(ours)

    def words_to_fork(self, words: Sequence[str], environment: Mapping[str, str]) -> list[str]:
        """What the interpreter is given on the command line; empty when the command needs a fresh one."""
        program = shutil.which(words[0], path=environment.get("PATH")) or ""
        if SUPERVISOR in environment:  # it looks at its parent, which must be who started it
            return []
        own = self.variables()
        names = {name for name in {*own, *environment} if name.startswith(READ_AT_IMPORT)}
        read = [name for name in names if not name.startswith(READ_LATER)]
        same_imports = all(own.get(name) == environment.get(name) for name in read)
        if not same_imports or Path(program).parent != Path(sys.executable).parent:
            return []
        own_words = [*([] if program == sys.executable else [program]), *map(str, words[1:])]
        known = own_words and (own_words[0] in OPTIONS or not own_words[0].startswith("-"))
        return own_words if known else []


PLAIN = Servers(lambda: {**os.environ, **SERVER_VARIABLES})
_sockets: list[socket.socket] = []
_ours: Servers | None = None
"""In a forked command, the servers of which one forked it, with its own environment for theirs."""


class Forked:
    """A forked process that calls `function(*arguments)`, and the part of subprocess.Popen's interface that tests use.

    The function must be importable. `output` is the descriptor for standard output and error, unless `errors` is
    another one for the latter; without it they go to the pipe `stdout`.
    """

    def __init__(
        self,
        function: Callable,
        *arguments: object,
        output: int | None = None,
        errors: int | None = None,
        own_session: bool = False,
        server: int = 0,
        servers: Servers = PLAIN,
    ):
        self.args, self.returncode, self.stdout = (function, *arguments), None, None
        self._reader: threading.Thread | None = None
        self._rest = ""
        self._status, status = os.pipe()
        request = os.memfd_create("request")
        os.write(request, pickle.dumps((reference(function), arguments)))
        os.lseek(request, 0, os.SEEK_SET)
        made = [request, status]
        if output is None:
            reading, output = os.pipe()
            self.stdout = os.fdopen(reading)
            made.append(output)
        servers.start()
        given = [request, status, output, output if errors is None else errors]
        given += [one.fileno() for one in servers.sockets]
        socket.send_fds(servers.sockets[server], [OWN_SESSION if own_session else b"fork"], given)
        for number in made:
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
    words: list[str],
    environment: Mapping[str, str],
    folder: Path = ROOT,
    server: int = 0,
    servers: Servers = PLAIN,
    own_session: bool = False,
) -> Forked | subprocess.Popen:
    """A command, started: `python FILE ...`, `python -m MODULE ...`, `python -c CODE ...` and the environment's scripts
    by a fork, everything else as a fresh process. Standard error goes to the pipe `stdout` too.
    """
    if own_words := servers.words_to_fork(words, environment):
        call = _run_python, own_words, dict(environment), str(folder)
        return Forked(*call, own_session=own_session, server=server, servers=servers)
    return start_fresh(words, environment, folder, own_session)


class Popen(subprocess.Popen):
    """subprocess.Popen in processes that were forked here: the Python commands that they start are forked too.

    Only where nothing is piped. The process is a child of a server's and begins with default signals.
    """

    def __new__(cls, args, *more, env=None, cwd=None, stdout=None, stderr=None, start_new_session=False, **others):
        environment = dict(os.environ) if env is None else env
        no_input = others.pop("stdin", subprocess.DEVNULL) == subprocess.DEVNULL  # so begins every forked process
        known = isinstance(args, list | tuple) and no_input and not more and not others
        to_files = all(target is None or hasattr(target, "fileno") for target in (stdout, stderr))
        own_words = _ours.words_to_fork(args, environment) if _ours and known and to_files else []
        if not own_words:
            return super().__new__(cls)
        return Forked(
            *(_run_python, own_words, dict(environment), str(cwd or os.getcwd())),
            output=stdout.fileno() if stdout else 1,
            errors=stderr.fileno() if stderr else 2,
            own_session=start_new_session,
            server=next(_ours.turns) % len(_ours.sockets),
            servers=_ours,
        )


def start_fresh(
    words: list[str], environment: Mapping[str, str], folder: Path = ROOT, own_session: bool = False
) -> subprocess.Popen:
    """The same command by an interpreter that imports everything itself."""
    return subprocess.Popen(
        words,
        cwd=folder,
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=own_session,
    )


def _run_python(words: list[str], environment: dict[str, str], folder: str) -> None:
    """What the interpreter does with its command line."""
    global _ours
    _ours = Servers(lambda: environment, number=len(_sockets))
    _ours.sockets = _sockets
    _show([sys.executable, *words])
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if words[0] == "-u":
        del words[0]
        sys.stdout.reconfigure(write_through=True)
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


def _show(words: list[str]) -> None:
    """Make these words what `ps` shows of this process, in the place of the server's own, which are long enough."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    begin, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, 48 and 49 in proc(5)
    line = "\0".join(words).encode()[: end - begin - 1]
    ctypes.memmove(begin, line.ljust(end - begin, b"\0"), end - begin)


def reference(function: Callable) -> tuple[str, str]:
    """Module and name under which another process finds the function, also when this program defines it."""
    module = sys.modules[function.__module__]
    name = module.__spec__.name if function.__module__ == "__main__" else function.__module__
    return name, function.__qualname__


def resolve(module: str, name: str) -> Callable:
    return getattr(importlib.import_module(module), name)


def serve(control_descriptor: int, preload: str) -> Callable:
    """In each forked process, the call that it is for; the server itself ends with the process that asks."""
    subprocess.Popen = Popen  # before others keep it under a name of theirs
    importlib.import_module(preload)
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"a process of {threads} threads must not fork"
    control = socket.socket(fileno=control_descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Control-C ends pytest, and that ends the server
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the watchers
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 16, 6)
        if not message:
            return lambda: None
        if os.fork() == 0:
            control.close()
            return _watched(message == OWN_SESSION, *descriptors)
        for number in descriptors:
            os.close(number)


def _watched(own_session: bool, request: int, status: int, output: int, errors: int, *servers: int) -> Callable:
    """Fork the process that is asked for, which tells its number, and in the parent tell its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child:
        for number in (0, 1, 2, request, output, errors, *servers):
            os.close(number)
        os.write(status, NUMBER.pack(os.waitpid(child, 0)[1]))
        os._exit(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if own_session:
        os.setsid()
    os.write(status, NUMBER.pack(os.getpid()))
    os.dup2(output, 1)
    os.dup2(errors, 2)
    for number in (status, output, errors):
        os.close(number)
    for number in servers:
        os.set_inheritable(number, False)
        _sockets.append(socket.socket(fileno=number))
    with open(request, "rb") as file:
        (module, name), arguments = pickle.load(file)
    return functools.partial(resolve(module, name), *arguments)
