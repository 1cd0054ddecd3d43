"""`upscale evaluate`: a run's checkpoint on tasks and texts, beside baselines and optimum."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from upscale.checkpoint import layout, run_directory
from upscale.checkpoint.export import load
from upscale.console import command
from upscale.console.progress import status_line
from upscale.distributed.world import World
from upscale.errors import UserError
from upscale.evaluation import overlap, standalone, suite
from upscale.evaluation.own_model import perplexity
from upscale.evaluation.table import learnt, table
from upscale.evaluation.tasks import HELD_OUT_SPLITS
from upscale.machine import accelerator
from upscale.training import precision


def main(arguments: list[str]) -> int:
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
    parser.add_argument(
        "--diagnostics",
        action="store_true",
        help="also what was learnt: repetition, needles, use of context, calibration",
    )
    parser.add_argument(
        "--corpus",
        type=Path,
        metavar="DIR",
        help="instead of tasks: perplexity and bits per byte of a prepared corpus, from --slices rows (default: all)",
    )
    options = parser.parse_args(arguments)
    if options.corpus:
        print(of_corpus(options))
        return 0
    config = run_directory.read_config(options.run)
    overlap.check_tokens(config)
    names = options.tasks or config.evaluation.tasks
    datasets = suite.datasets(
        "all" if names == ["all"] else names,
        data_dir=options.data_dir or config.evaluation.data_dir,
        split=options.split,
    )
    world = World.join()
    chosen = precision.settle(config, world)
    if world.is_main:
        print(*chosen.notes, sep="\n", end="\n" if chosen.notes else "", file=sys.stderr)

    with status_line(sys.stderr, wanted=world.is_main) as show:
        records = standalone.measure(
            options.run,
            chosen.config,
            datasets,
            step=options.checkpoint,
            slices=options.slices or config.evaluation.slices,
            world=world,
            progress=(lambda done, total, label: show(f"{done}/{total} {label}")) if show else None,
        )
    if world.is_main:
        print(f"{options.run} at step {records[0]['step']:,}, {records[0]['instances']:,} instances\n{table(records)}")
        print(f"appended to {options.run / layout.EVALUATIONS}")
    if options.diagnostics:
        found = standalone.diagnose(options.run, chosen.config, datasets, step=options.checkpoint, world=world)
        if world.is_main:
            print(f"\n{learnt(found)}\nappended to {options.run / layout.DIAGNOSTICS}")
    command.finish_together(world)
    return 0


def of_corpus(options: argparse.Namespace) -> str:
    """What a run's model gives a prepared corpus, as one line."""
    for option in ("tasks", "data_dir", "diagnostics"):
        if getattr(options, option):
            raise UserError(f"--{option.replace('_', '-')} with --corpus: it is for tasks; leave one of them out")
    model = load(options.run, accelerator.device_type(), options.checkpoint)
    found = perplexity(model, options.corpus, split=options.split, rows=options.slices)
    error = "" if found["standard_error"] is None else f" +- {found['standard_error']:.4f}"
    return (
        f"{options.corpus} ({found['corpus']}, {found['split']}, {found['rows']:,} rows): {found['bits_per_byte']:.4f} "
        f"bits per byte, perplexity {found['perplexity']:.3f}, {found['bits_per_token']:.4f}{error} bits per token"
    )
