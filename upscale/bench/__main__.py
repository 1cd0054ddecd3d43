"""`python -m upscale.bench`: how ranks are started, by the verb itself, by torchrun or by deepspeed."""

from upscale import command
from upscale.bench.verb import main
from upscale.supervision import interrupt

if __name__ == "__main__":
    interrupt.leave_quietly()
    command.run(main)
