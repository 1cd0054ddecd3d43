"""`upscale checkpoint`: list the checkpoints of a run, or check every byte of them."""

from __future__ import annotations

from pathlib import Path

from upscale.checkpoint import layout, manifest
from upscale.console import command
from upscale.console.text import harmless
from upscale.distributed.world import World
from upscale.errors import UserError


def main(arguments: list[str]) -> int:
    """Exit code 1 from `verify` when a step is not valid."""

    parser = command.parser("checkpoint", "List the checkpoints of a run, or check every byte of them.")
    parser.add_argument("action", choices=("list", "verify"))
    parser.add_argument("run", type=Path, metavar="DIR", help="run directory, or its folder of checkpoints")
    options = parser.parse_args(arguments)
    folder = options.run / layout.CHECKPOINTS
    folder = folder if folder.is_dir() else options.run
    steps = manifest.steps(folder)
    if not steps:
        raise UserError(f"{folder} holds no checkpoint. Give a run directory, or its folder {layout.CHECKPOINTS}.")
    invalid = 0
    for step in steps:
        path = manifest.step_folder(folder, step)
        try:
            content = manifest.read(path) if options.action == "list" else manifest.verify(path, World.single())
        except manifest.InvalidCheckpoint as error:
            invalid += 1
            print(harmless(f"step {step:>8,}  INVALID  {error}"))
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
