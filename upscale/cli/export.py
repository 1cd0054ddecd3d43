"""`upscale export`: a run's weights as one safetensors file."""

from __future__ import annotations

from pathlib import Path

from upscale.checkpoint import run_directory
from upscale.checkpoint.export import export
from upscale.console import command


def main(arguments: list[str]) -> int:
    parser = command.parser("export", "Write a run's weights as one safetensors file, for `upscale.load(path)`.")
    parser.add_argument("--run", required=True, type=Path, metavar="DIR", help="run directory that training wrote")
    parser.add_argument("--step", type=int, metavar="N", help="checkpoint to export; default: the newest valid one")
    parser.add_argument(
        "--to", required=True, type=Path, metavar="FILE", help="file to write, for example model.safetensors"
    )
    options = parser.parse_args(arguments)
    counters = export(options.run, run_directory.read_config(options.run), options.step, options.to)
    print(f"weights of step {counters['step']:,} ({counters['instances']:,} instances) written to {options.to}")
    return 0
