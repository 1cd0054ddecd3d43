"""Forked processes against fresh interpreters: what tests may rely on when they start commands through a fork."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import forks
from tests.pace import Deadline
from tests.test_train import environment, finish

TELL = """
import json, os, sys, threading
print("to stderr", file=sys.stderr)
print(json.dumps({
    "arguments": sys.argv, "first path": sys.path[0], "name": __name__, "folder": os.getcwd(),
    "variables": {name: os.environ.get(name) for name in ("HERE", "HOME", "RANK")}, "threads": threading.active_count(),
}))
sys.exit(3)
"""


def told(process) -> dict:
    code, output = finish(process)
    assert code == 3 and "to stderr\n" in output, output
    return json.loads(next(line for line in output.splitlines() if line.startswith("{")))


@pytest.mark.parametrize("kind", ["-c", "file", "-m"])
def test_a_forked_command_is_what_a_fresh_one_is(tmp_path, kind):
    """Arguments, module path, name, folder, variables, both outputs and the exit code."""
    (tmp_path / "tell.py").write_text(TELL)
    place = {"-c": ["-c", TELL], "file": [str(tmp_path / "tell.py")], "-m": ["-m", "tell"]}[kind]
    words = [sys.executable, *place, "a b", "--flag"]
    variables = environment(HERE="x", PYTHONPATH=str(tmp_path))
    forked = forks.start(words, variables, tmp_path)
    assert isinstance(forked, forks.Forked)
    assert told(forked) == told(forks.start_fresh(words, variables, tmp_path))


def test_what_a_fork_cannot_take_over_starts_a_fresh_interpreter():
    started = forks.start([sys.executable, "-c", ""], environment(ATEN_CPU_CAPABILITY="default"))
    assert isinstance(started, subprocess.Popen) and finish(started) == (0, "")
    started = forks.start([sys.executable, "-I", "-c", "print(1)"], environment())
    assert isinstance(started, subprocess.Popen) and finish(started) == (0, "1\n")


# As a launcher starts a rank: with a session of its own, and its output in a file or where the launcher's goes.
LAUNCH = """
import os, subprocess, sys
tell = "import os, sys; print(os.getsid(0) == os.getpid(), os.environ['RANK'], 'deepspeed' in sys.modules, flush=True)"
with open(sys.argv[1], "w") as file:
    for target in (None, file):
        rank = subprocess.Popen(
            [sys.executable, "-u", "-c", tell + "; sys.exit(3)"],
            env={**os.environ, "RANK": "7", "TORCHELASTIC_RUN_ID": "x"}, start_new_session=True, stdout=target,
            stdin=subprocess.DEVNULL,
        )
        assert rank.poll() is None or rank.returncode == 3
        print(rank.wait(60), flush=True)
print(subprocess.run([sys.executable, "-c", "print('piped')"], capture_output=True, text=True).stdout)
"""


def test_a_forked_command_forks_the_python_that_it_starts(tmp_path):
    """But for what is preloaded, the answers are those of fresh processes."""
    words = [sys.executable, "-c", LAUNCH, str(tmp_path / "file")]
    for begin, preloaded in ((forks.start, "True"), (forks.start_fresh, "False")):
        code, output = finish(begin(words, environment()))
        assert code == 0 and output.split() == ["True", "7", preloaded, "3", "3", "piped"], output
        assert (tmp_path / "file").read_text().split() == ["True", "7", preloaded]


def test_a_forked_command_is_found_by_its_command_line():
    words = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)", "a b"]
    process = forks.start(words, environment())
    assert process.stdout.readline() == "up\n"
    assert Path(f"/proc/{process.pid}/cmdline").read_bytes().rstrip(b"\0").decode().split("\0") == words
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_signals_end_it_and_are_its_exit_code(number):
    words = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
    process = forks.start(words, environment())
    assert process.stdout.readline() == "up\n" and process.poll() is None
    process.send_signal(number)
    assert finish(process)[0] == -number


def test_an_exception_is_a_traceback_and_exit_code_1():
    code, output = finish(forks.start([sys.executable, "-c", "raise KeyError('x')"], environment()))
    assert code == 1 and output.strip().endswith("KeyError: 'x'")


def test_two_servers_hash_strings_differently():
    """As ranks do whose interpreters start by themselves."""
    words = [sys.executable, "-c", "print(hash('rank'))"]
    assert len({finish(forks.start(words, environment(), server=server)) for server in (0, 1)}) == 2


def test_a_deadline_waits_as_much_longer_as_the_machine_is_slower(monkeypatch):
    monkeypatch.setattr("tests.pace.measure", lambda: 3.0)
    deadline = Deadline(10)
    assert not deadline.passed() and deadline.left() == pytest.approx(10, abs=1)
    deadline.begin = time.monotonic() - 20
    assert deadline.left() == pytest.approx(10, abs=1), "20 of 30 s have passed"
    deadline.begin = time.monotonic() - 30
    assert deadline.passed()
