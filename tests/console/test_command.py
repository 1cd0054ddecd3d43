"""How a command ends with a mistake on several ranks, against real processes and the signals of a launcher."""

import os
import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """
from upscale.console import command
from upscale.errors import {error}

command.SECONDS_FOR_THE_FIRST_RANK = {seconds}

def main(arguments):
    print("begun", flush=True)
    raise {error}("no such thing")

command.run(main)
"""


def rank(number: int, error: str = "UserError", seconds: int = 120) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(error=error, seconds=seconds)],
        env={**os.environ, "RANK": str(number)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("number", "error"), [(0, "UserError"), (1, "LaunchError")])
def test_the_first_rank_and_a_rank_with_a_mistake_of_its_own_speak_at_once(number, error):
    process = rank(number, error)
    assert "error: no such thing" in process.communicate(timeout=90)[1]
    assert process.returncode == 2


def test_another_rank_leaves_the_message_to_the_first_and_dies_with_the_launcher():
    process = rank(1)
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == -signal.SIGTERM


def test_another_rank_that_nobody_ends_says_it_itself():
    """As when the file is unreadable on one node only: rank 0 has nothing to say."""
    process = rank(1, seconds=1)
    assert "error: no such thing" in process.communicate(timeout=90)[1]
    assert process.returncode == 2
