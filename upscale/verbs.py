"""The small commands: each reads its arguments and calls the room that does the work."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from upscale import command, run_directory
from upscale.config import files as config_files
from upscale.distributed import World
from upscale.errors import UserError


def evaluate(arguments: list[str]) -> int:
    from upscale.evaluation import standalone, suite
    from upscale.evaluation.table import table
    from upscale.evaluation.texts import HELD_OUT_SPLITS

    parser = command.parser("evaluate", "Measure a run's checkpoint on tasks and texts, beside baselines and optimum.")
    parser.add_argument("--run", required=True, type=Path, metavar="DIR", help="run directory that training wrote")
    parser.add_argument(
        "--tasks", nargs="+", metavar="NAME", help="tasks and texts; default: those of the run's config"
    )
    parser.add_argument("--checkpoint", type=int, metavar="STEP", help="step to measure; default: the newest valid one")
    parser.add_argument(
        "--slices", type=int, metavar="N", help="slices per task; default: evaluation.slices of the run"
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help="folder with full texts or prepared corpora; default: that of the run's config",
    )
    parser.add_argument(
        "--split", choices=HELD_OUT_SPLITS, default="validation", help="split of prepared corpora; default: validation"
    )
    options = parser.parse_args(arguments)
    config = run_directory.read_config(options.run)
    names = options.tasks or config.evaluation.tasks
    chosen = suite.datasets(
        "all" if names == ["all"] else names,
        data_dir=options.data_dir or config.evaluation.data_dir,
        split=options.split,
    )
    world = World.join()

    def progress(done: int, total: int, label: str) -> None:
        if world.is_main and sys.stderr.isatty():
            print(f"\r\x1b[K{done}/{total} {label}", end="", file=sys.stderr, flush=True)

    records = standalone.measure(
        options.run,
        config,
        chosen,
        step=options.checkpoint,
        slices=options.slices or config.evaluation.slices,
        world=world,
        progress=progress,
    )
    if world.is_main:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr)
        print(f"{options.run} at step {records[0]['step']:,}, {records[0]['instances']:,} instances\n{table(records)}")
        print(f"appended to {options.run / 'evaluations.jsonl'}")
    command.finish_together(world)
    return 0


def report(arguments: list[str]) -> int:
    from upscale import report as room
    from upscale.report import comparison

    parser = command.parser("report", "Curves and tables of one or more runs as one self-contained HTML page and PNGs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    parser.add_argument(
        "--to", type=Path, default=Path("report"), metavar="DIR", help="folder to write; default: report"
    )
    options = parser.parse_args(arguments)
    try:
        runs = room.read_runs(options.runs)
        page = room.write_page(runs, options.to)
    except ValueError as error:
        raise UserError(str(error)) from None
    for pair in comparison.pairs(runs):
        print(f"{pair.pretrained.name} against {pair.scratch.name}\n" + "\n".join(comparison.sentences(pair)))
    print(f"report written to {page}")
    return 0


def sample(arguments: list[str]) -> int:
    from upscale import compiled, data, lanes
    from upscale.sources.sample import printable, sample_lines

    parser = command.parser(
        "sample", "Print rows that a config's sources write, as a model in training would get them."
    )
    command.add_config(parser)
    parser.add_argument("--rows", type=int, default=8, metavar="N", help="rows to print, at most a round's; default: 8")
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="rounds a lane runs until then; default: 30, with --stats 100"
    )
    parser.add_argument(
        "--stats",
        nargs="+",
        metavar="THING",
        help="measure instead, side by side: configs (*.yaml), texts and tasks (wp, linux, dyck, ...), or files",
    )
    parser.add_argument("--to", type=Path, metavar="DIR", help="with --stats: write statistics.json and .png there")
    options = parser.parse_intermixed_args(arguments)
    # After 100 rounds one row of 150 is left of the constants and noise that a buffer starts with.
    rounds = (100 if options.stats else 30) if options.rounds is None else options.rounds
    if options.rows < 1 or rounds < 1:
        raise UserError(f"--rows {options.rows} --rounds {rounds}: both must be at least 1")
    if options.to and not options.stats:
        raise UserError("--to is for --stats; redirect the output to keep printed rows")
    if options.stats:
        if options.config:
            raise UserError(f"--config {options.config} with --stats: give the config as one of the things to measure")
        from upscale.row_statistics import things, write

        rows = things.gather(options.stats, options.overrides, rounds=rounds)
        print(write(rows, options.to))
        return 0
    config = config_files.load(options.config, options.overrides).resolved()
    if config.data.kind == "corpus":
        print("\n".join(printable(data.opened(config)(range(1), "cpu").draw(options.rows))))
        return 0
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    compiled.check_kernel_compiler(device_type)
    lane = lanes.from_config(config, range(1), device_type)
    for _ in range(rounds - 1):
        lane.draw(1)
    for line in sample_lines(lane, 1, options.rows):
        print(line)
    return 0


def export(arguments: list[str]) -> int:
    from upscale import export as room

    parser = command.parser("export", "Write a run's weights as one safetensors file, for `upscale.load(path)`.")
    parser.add_argument("--run", required=True, type=Path, metavar="DIR", help="run directory that training wrote")
    parser.add_argument("--step", type=int, metavar="N", help="checkpoint to export; default: the newest valid one")
    parser.add_argument(
        "--to", required=True, type=Path, metavar="FILE", help="file to write, for example model.safetensors"
    )
    options = parser.parse_args(arguments)
    counters = room.export(options.run, run_directory.read_config(options.run), options.step, options.to)
    print(f"weights of step {counters['step']:,} ({counters['instances']:,} instances) written to {options.to}")
    return 0


def checkpoint(arguments: list[str]) -> int:
    """Exit code 1 from `verify` when a step is not valid."""
    from upscale.checkpoint import manifest

    parser = command.parser("checkpoint", "List the checkpoints of a run, or check every byte of them.")
    parser.add_argument("action", choices=("list", "verify"))
    parser.add_argument("run", type=Path, metavar="DIR", help="run directory, or its folder of checkpoints")
    options = parser.parse_args(arguments)
    folder = options.run / run_directory.CHECKPOINTS
    folder = folder if folder.is_dir() else options.run
    steps = manifest.steps(folder)
    if not steps:
        raise UserError(
            f"{folder} holds no checkpoint. Give a run directory, or its folder {run_directory.CHECKPOINTS}."
        )
    invalid = 0
    for step in steps:
        path = manifest.step_folder(folder, step)
        try:
            content = manifest.read(path) if options.action == "list" else manifest.verify(path, World.single())
        except manifest.InvalidCheckpoint as error:
            invalid += 1
            print(f"step {step:>8,}  INVALID  {error}")
            continue
        size = sum(entry["bytes"] for entry in content["files"].values()) / 2**20
        words = [
            f"{content['counters']['instances']:,} instances",
            f"{size:,.1f} MiB",
            f"{content['world_size']} ranks",
        ]
        words += ["milestone"] * bool(content["milestone"]) + ["valid"] * (options.action == "verify")
        print(f"step {step:>8,}  " + "  ".join(words))
    return 1 if invalid and options.action == "verify" else 0
