"""A request to stop that comes while the training program is still importing."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys

from tests.test_train import (
    ROOT,
    SLOW_STEPS,
    TIMEOUT_SECONDS,
    catches,
    command,
    environment,
    finish,
    logged,
    metrics,
    start,
    start_fresh,
    wait_for,
)
from upscale.checkpoint import manifest


def test_it_is_taken_up_after_the_first_step(tmp_path):
    process = start_fresh([sys.executable, "upscale/train.py", *command(tmp_path, "schedule.instances=10e6")])
    wait_for(lambda: catches(process.pid, signal.SIGUSR1), process)
    process.send_signal(signal.SIGUSR1)
    code, output = finish(process)
    assert code == 75, output
    assert [record["step"] for record in metrics(tmp_path)] == manifest.steps(tmp_path / "checkpoints") == [1]


def test_a_terminal_that_closes_is_a_request_to_stop(tmp_path):
    """A real terminal, closed under the training: the kernel sends SIGHUP, and nothing can be printed any more."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, runpy, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
         "signal.signal(signal.SIGHUP, signal.SIG_DFL); "  # these tests may themselves run under nohup
         "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')",
         "upscale/train.py", *command(tmp_path, *SLOW_STEPS)],
        cwd=ROOT, env=environment(), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    os.set_blocking(ours, False)

    def shown() -> bool:
        with contextlib.suppress(BlockingIOError):
            while os.read(ours, 4096):
                pass
        return logged(tmp_path)

    try:
        wait_for(shown, process)
        os.close(ours)
        process.send_signal(signal.SIGHUP)  # once more, as a shell does
        assert process.wait(TIMEOUT_SECONDS) == 75
    finally:
        process.kill()
    assert manifest.steps(tmp_path / "checkpoints") == [metrics(tmp_path)[-1]["step"]]
    assert "stopped by SIGHUP" in (tmp_path / "log.txt").read_text()


def test_nohup_keeps_a_training_that_loses_its_terminal(tmp_path):
    process = start(["nohup", sys.executable, "upscale/train.py", *command(tmp_path, "run.steps=40", *SLOW_STEPS[1:])])
    wait_for(lambda: logged(tmp_path), process)
    process.send_signal(signal.SIGHUP)
    code, output = finish(process)
    assert code == 0 and len(metrics(tmp_path)) == 40, output
