"""`upscale doctor`: before a long run, what every node has and how fast it is; alone, or by a launcher of ranks."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from upscale.config import files as config_files
from upscale.console import command
from upscale.distributed.placement import is_launched
from upscale.distributed.watchdog import Watchdog
from upscale.distributed.world import World
from upscale.doctor.base import Session
from upscale.doctor.examination import Examination
from upscale.errors import RUN_ERROR_EXIT_CODE, RunError, UserError
from upscale.files import write_json
from upscale.launch.supervisor import Supervisor
from upscale.machine import accelerator
from upscale.training import precision


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = command.parser(
        "doctor",
        "Check every node before a long run: versions, limits, clocks, ports, run directory, memory, speeds and links. "
        "Start it as the run will be started (srun upscale doctor, torchrun); alone it checks this machine.",
    )
    command.add_config(parser)
    parser.add_argument(
        "--ranks", type=int, metavar="N", help="start N ranks here; default: one per GPU, or the launcher's"
    )
    parser.add_argument(
        "--timeout", type=float, default=120, metavar="SECONDS", help="of one check, for all ranks; default: 120"
    )
    parser.add_argument(
        "--to", type=Path, default=Path("doctor.json"), metavar="FILE", help="every figure; default: doctor.json"
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args(arguments)
    launched = is_launched(os.environ)
    if options.timeout < 1 or (options.ranks is not None and options.ranks < 1):
        raise UserError(f"--timeout {options.timeout:g} --ranks {options.ranks}: both must be at least 1")
    if launched and options.ranks is not None:
        raise UserError(f"--ranks {options.ranks}, but a launcher started this rank: leave --ranks out")
    config = config_files.load(options.config, options.overrides).resolved()
    device_type = accelerator.device_type()
    ranks = options.ranks or (torch.cuda.device_count() if device_type == "cuda" else 1)
    if ranks > 1 and not launched:
        program = (sys.executable, "-m", "upscale.cli", "doctor")
        rest = _without_ranks(arguments)
        reason, code = Supervisor(rest, Path(config.run.dir), ranks, 0, program).attempt(ranks)
        if code not in (0, 1, 2):
            raise RunError(reason)
        return code

    # Collectives wait longer than the watchdog, which names the ranks that do not answer.
    world = World.join(timeout_seconds=2 * options.timeout + 60)
    session = Session.begin(precision.settle(config, world).config, world)
    examination = Examination(session)
    watchdog = Watchdog(options.timeout, lambda: _lost(examination, options.to))
    try:
        with watchdog:
            examination.run(_say if world.is_main else lambda text: None, watchdog.beat)
            code = world.broadcast_object(_finish(examination, options.to) if world.is_main else 0)
        command.finish_together(world)
    except RuntimeError as error:  # what torch raises when a collective fails
        if not world.silent_ranks():
            raise
        raise RunError(f"{_lost(examination, options.to)} ({str(error).strip().splitlines()[0][:200]})") from None
    return code


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _without_ranks(arguments: list[str]) -> list[str]:
    """The arguments for each of the ranks that are started here."""
    kept, words = [], iter(arguments)
    for word in words:
        if word == "--ranks":
            next(words, None)
        elif not word.startswith("--ranks="):
            kept.append(word)
    return kept


def _finish(examination: Examination, to: Path) -> int:
    """Print the report and write the figures; the exit code."""
    print(examination.report())
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        write_json(to, examination.as_tree())
        print(f"\nfigures in {to}", flush=True)
    except OSError as error:
        raise UserError(f"--to {to} cannot be written: {error}") from None
    return RUN_ERROR_EXIT_CODE if examination.problems else 0


def _lost(examination: Examination, to: Path) -> str:
    """What to say when a check does not end; rank 0 also reports what was found until then."""
    world = examination.session.world
    record = examination.lost(world.silent_ranks())
    if world.is_main:
        examination.records += [] if record in examination.records else [record]
        _finish(examination, to)
    return f"rank {world.rank}: {record.advice}"
