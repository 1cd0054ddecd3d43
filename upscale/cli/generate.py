"""`upscale generate`: rows that a config's sources write, as a corpus of webdataset shards."""

from __future__ import annotations

from pathlib import Path

from upscale.config import files as config_files
from upscale.console import command
from upscale.data.generation import generate
from upscale.errors import UserError
from upscale.machine import accelerator, compiler


def main(arguments: list[str]) -> int:
    parser = command.parser(
        "generate", "Write the rows that a config trains on as webdataset shards with an index; run again to continue."
    )
    command.add_config(parser)
    parser.add_argument("--rows", required=True, type=_rows, metavar="N", help="rows to write, such as 1e6")
    parser.add_argument("--to", required=True, type=Path, metavar="DIR", help="folder to write, new or begun before")
    parser.add_argument("--processes", type=int, metavar="N", help="on the CPU; default: as many as there are cores")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where sources write; default: cpu")
    options = parser.parse_intermixed_args(arguments)
    config = config_files.load(options.config, options.overrides)
    if options.device == "cuda":
        if accelerator.device_type() != "cuda":
            raise UserError("--device cuda: no GPU is here; leave it out")
        compiler.check_kernel_compiler("cuda")
    written = generate(config, rows=options.rows, to=options.to, processes=options.processes, device=options.device)
    shards = written.splits["train"]
    print(f"{options.to}: {options.rows:,} rows of {written.row_tokens:,} tokens in {len(shards):,} shards")
    return 0


def _rows(text: str) -> int:
    return command.count(text, "rows, such as 1e6")
