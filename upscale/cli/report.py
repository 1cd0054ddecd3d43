"""`upscale report`: curves and tables of one or more runs as one HTML page."""

from __future__ import annotations

from pathlib import Path

from upscale.console import command
from upscale.console.text import harmless
from upscale.errors import UserError
from upscale.report import comparison, read_runs, write_page


def main(arguments: list[str]) -> int:
    parser = command.parser("report", "Curves and tables of runs as one self-contained HTML page, with PNGs and SVGs.")
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run directories, or folders of them such as a study's"
    )
    parser.add_argument(
        "--to", type=Path, default=Path("report"), metavar="DIR", help="folder to write; default: report"
    )
    options = parser.parse_args(arguments)
    try:
        runs = read_runs(options.runs)
        page = write_page(runs, options.to)
    except ValueError as error:
        raise UserError(str(error)) from None
    for pair in comparison.pairs(runs):
        print(harmless(f"{pair.pretrained.name} against {pair.scratch.name}\n" + "\n".join(comparison.sentences(pair))))
    print(f"report written to {page}")
    return 0
