"""`upscale sample`: rows that a config's sources write, or their statistics beside those of texts."""

from __future__ import annotations

from pathlib import Path

from upscale.config import files as config_files
from upscale.console import command
from upscale.data import lanes, training_rows
from upscale.data.sample import printable, sample_lines
from upscale.errors import UserError
from upscale.machine import accelerator, compiler
from upscale.row_statistics import inputs, write


def main(arguments: list[str]) -> int:
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
        rows = inputs.gather(options.stats, options.overrides, rounds=rounds)
        print(write(rows, options.to))
        return 0
    config = config_files.load(options.config, options.overrides).resolved()
    if config.data.kind == "corpus":
        print("\n".join(printable(training_rows.open_rows(config)(range(1), "cpu").draw(options.rows))))
        return 0
    device_type = accelerator.device_type()
    compiler.check_kernel_compiler(device_type)
    lane = lanes.from_config(config, range(1), device_type)
    for _ in range(rounds - 1):
        lane.draw(1)
    for line in sample_lines(lane, 1, options.rows):
        print(line)
    return 0
