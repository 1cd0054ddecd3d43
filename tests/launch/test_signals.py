"""A request to stop that comes while the training program is still importing."""

from __future__ import annotations

import signal
import sys

from tests.test_train import catches, command, finish, metrics, start_fresh, wait_for
from upscale.checkpoint import manifest


def test_it_is_taken_up_after_the_first_step(tmp_path):
    process = start_fresh([sys.executable, "upscale/train.py", *command(tmp_path, "schedule.instances=10e6")])
    wait_for(lambda: catches(process.pid, signal.SIGUSR1), process)
    process.send_signal(signal.SIGUSR1)
    code, output = finish(process)
    assert code == 75, output
    assert [record["step"] for record in metrics(tmp_path)] == manifest.steps(tmp_path / "checkpoints") == [1]
