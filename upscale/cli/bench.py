"""`upscale bench`: training steps of a config, the sources alone, or results side by side."""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from pathlib import Path

import torch

from upscale.bench import compare, sources, step, tables
from upscale.bench.machine import machine
from upscale.config import Config
from upscale.config import files as config_files
from upscale.console import command
from upscale.data import training_rows
from upscale.distributed.placement import is_launched, placement
from upscale.distributed.world import World
from upscale.errors import RunError, UserError
from upscale.files import write_json
from upscale.launch.supervisor import Supervisor
from upscale.machine import accelerator, compiler
from upscale.planning import out_of_memory
from upscale.training import precision


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = command.parser("bench", "Measure training steps of a config on this machine, or what its sources write.")
    command.add_config(parser)
    parser.add_argument("--ranks", type=int, metavar="N", help="start N ranks here; default: 1, or the launcher's")
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="steps that count; default: 5")
    parser.add_argument("--warm-up", type=int, default=2, metavar="N", help="steps before them; default: 2")
    parser.add_argument(
        "--baseline", action="store_true", help="also plain PyTorch and the paper's step, in turns, at one rank"
    )
    parser.add_argument(
        "--operators", action="store_true", help="also one step by operator, beside its products' own limit here"
    )
    parser.add_argument("--to", type=Path, metavar="FILE", help="also write the figures as JSON")
    parser.add_argument("--compare", nargs="+", type=Path, metavar="FILE", help="instead: results side by side")
    parser.add_argument("--sources", action="store_true", help="instead: rows a second of every kind of source")
    parser.add_argument("--width", type=int, default=1024, metavar="N", help="sources: of the model; default: 1024")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="sources: timed calls; default: 3")
    parser.add_argument("--device", help="sources: cpu or cuda; default: cuda where there is one")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args(arguments)
    if options.compare:
        print(compare.side_by_side(options.compare))
        return 0
    if options.sources:
        return _sources(options)
    if options.steps < 1 or options.warm_up < 0 or (options.ranks or 1) < 1:
        given = f"--steps {options.steps} --warm-up {options.warm_up} --ranks {options.ranks}"
        raise UserError(f"{given}: must be at least 1, 0 and 1")
    config = config_files.load(options.config, options.overrides).resolved()
    launched = is_launched(os.environ)
    ranks = placement(os.environ).size if launched else options.ranks or 1
    _check(options, config, ranks)
    if ranks > 1 and not launched:
        program = (sys.executable, "-m", "upscale.cli", "bench")
        reason, code = Supervisor(arguments, Path(config.run.dir), ranks, 0, program).attempt(ranks)
        if code < 0 or code not in (0, 1, 2):
            raise RunError(reason)
        return code
    return _steps(options, config, arguments)


def _check(options: argparse.Namespace, config: Config, ranks: int) -> None:
    if options.ranks not in (None, ranks):
        raise UserError(f"--ranks {options.ranks}, but the launcher started {ranks}: leave --ranks out")
    if ranks > config.data.lanes:
        raise UserError(
            f"{ranks} ranks for data.lanes = {config.data.lanes}, but a lane never spans ranks. Use at most "
            f"{config.data.lanes} ranks, or data.lanes={ranks} or more."
        )
    if options.baseline and ranks > 1:
        raise UserError(f"--baseline is one process beside another: measure it with --ranks 1, not {ranks}")


def _steps(options: argparse.Namespace, config: Config, arguments: list[str]) -> int:
    rows, place = training_rows.open_rows(config), placement(os.environ)
    load = os.getloadavg()[0]
    compiler.check_kernel_compiler(accelerator.device_type())
    world = World.join(timeout_seconds=config.engine.timeout_seconds)

    def say(text: str) -> None:
        if world.is_main:
            print(text, file=sys.stderr, flush=True)

    chosen = precision.settle(config, world)
    config = chosen.config
    for line in (f"precision {config.engine.precision}: {chosen.reason}", *chosen.notes):
        say(line)
    local_ranks = place.local_size or place.size
    with out_of_memory.explained(config, world.device, world.size):
        counts, extras = (options.steps, options.warm_up), (options.baseline, options.operators)
        found = step.measure(config, world, rows, local_ranks, *counts, *extras, say)
    if world.is_main:
        result = {
            "kind": "step",
            "date": datetime.date.today().isoformat(),
            "command": " ".join(["upscale bench", *arguments]),
            "machine": machine(world.device),
            "load_average_before": round(load, 2),
            "versions": config_files.versions(),
            **found,
            "config": config_files.as_tree(config),
        }
        tables.show(result)
        if options.to:
            _write(options.to, result)
    command.finish_together(world)
    return 0


def _sources(options: argparse.Namespace) -> int:
    if options.repeats < 1 or options.width < 20:
        raise UserError(f"--repeats {options.repeats} --width {options.width}: must be at least 1 and 20")
    device = torch.device(options.device or accelerator.device_type())
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no CUDA device; use --device cpu")
    result = sources.run(options.width, options.repeats, device)
    if options.to:
        _write(options.to, result)
    return 0


def _write(path: Path, result: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
