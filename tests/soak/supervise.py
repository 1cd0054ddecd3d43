"""The supervisor of launch/local.sh with `rank.py` as the program of its ranks."""

from pathlib import Path

from upscale import command
from upscale.supervision import supervisor

if __name__ == "__main__":
    supervisor.PROGRAM = Path(__file__).with_name("rank.py")
    command.run(supervisor.main)
