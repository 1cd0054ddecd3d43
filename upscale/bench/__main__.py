"""`python -m upscale.bench`: how ranks are started, by the verb itself, by torchrun or by deepspeed."""

from upscale import command, interrupt
from upscale.bench.verb import main

if __name__ == "__main__":
    interrupt.leave_quietly()
    command.run(main)
