"""What every command shares: arguments, errors as one message with an exit code, and leaving without a hang."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from upscale.console.text import harmless
from upscale.errors import (
    INTERRUPTED_EXIT_CODE,
    RUN_ERROR_EXIT_CODE,
    USER_ERROR_EXIT_CODE,
    LaunchError,
    RunError,
    UserError,
)

if TYPE_CHECKING:  # commands that need no torch start without it
    from upscale.distributed.world import World

# How long the other ranks leave rank 0 to say a mistake they all share. Launchers end every rank as soon as one has
# failed, so a rank that left at once could take rank 0 away before its message.
SECONDS_FOR_THE_FIRST_RANK = 30


def parser(verb: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"upscale {verb}", description=description, allow_abbrev=False)


def add_config(arguments: argparse.ArgumentParser) -> None:
    arguments.add_argument("--config", metavar="FILE", help="YAML config; without it every key has its default")
    arguments.add_argument("overrides", nargs="*", metavar="key.sub=value", help="values that replace the file's")


def count(text: str, what: str) -> int:
    """A whole number, which may be written as 1e6; `what` it counts stands in the error of anything else."""
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 1 <= number < 1 << 53 or number != int(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {what}")
    return int(number)


def run(main: Callable[[list[str] | None], int], arguments: list[str] | None = None) -> NoReturn:
    """Call a command's main and leave the process with its exit code.

    Ends by `os._exit` after flushing: with a process group alive the interpreter's own shutdown can crash (DeepSpeed
    on gloo) or wait for a peer that is gone.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = main(arguments)
    except UserError as error:
        if not isinstance(error, LaunchError):
            _let_the_first_rank_speak()
        _complain(f"error: {error}")
        code = USER_ERROR_EXIT_CODE
    except RunError as error:
        _complain(f"error: {error}")
        code = RUN_ERROR_EXIT_CODE
    except KeyboardInterrupt:
        _complain("interrupted")
        code = INTERRUPTED_EXIT_CODE
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        code = 0
    except SystemExit as request:  # argparse
        code = request.code if isinstance(request.code, int) else USER_ERROR_EXIT_CODE
    except BaseException:
        _complain(traceback.format_exc())
        code = RUN_ERROR_EXIT_CODE
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    os._exit(code)


def _let_the_first_rank_speak() -> None:
    """Return at once on rank 0; elsewhere wait to be ended by the launcher, and return if nobody does."""
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
        return
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    time.sleep(SECONDS_FOR_THE_FIRST_RANK)


def _complain(text: str) -> None:
    try:
        print(harmless(text), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        return


def finish_together(world: World) -> None:
    """Wait for the other ranks, so that none tears its connections down while another still works."""
    world.barrier()
