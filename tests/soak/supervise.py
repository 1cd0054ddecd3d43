"""The supervisor of launch/local.sh with `rank.py` as the program of its ranks."""

import sys
from functools import partial
from pathlib import Path

from upscale.console import command
from upscale.launch import supervisor

if __name__ == "__main__":
    rank = Path(__file__).with_name("rank.py")
    command.run(partial(supervisor.main, program=(sys.executable, str(rank))))
