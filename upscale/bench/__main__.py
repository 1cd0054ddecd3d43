"""`python -m upscale.bench`: how ranks are started, by the verb itself, by torchrun or by deepspeed."""

from upscale.cli.bench import main
from upscale.console import command
from upscale.launch import signals

if __name__ == "__main__":
    signals.leave_quietly()
    command.run(main)
