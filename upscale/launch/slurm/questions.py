"""What the scripts in slurm/ ask Python: `python -m upscale.launch.slurm.questions QUESTION ...`.

directory --config F [overrides]   the run directory of a training command, whose config is checked
begin     --config F [overrides]   makes it and writes its config.yaml, unless the run has begun already
shape     RUN_DIRECTORY            overrides that give another config the model of that run
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from upscale.checkpoint import layout, run_directory
from upscale.config import Config
from upscale.config import files as config_files
from upscale.console import command
from upscale.errors import UserError

SHAPE_SECTIONS = ("model", "mup")


def main(arguments: list[str] | None = None) -> int:
    question, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    parser = argparse.ArgumentParser(prog=f"python -m upscale.launch.slurm.questions {question}", allow_abbrev=False)
    if question in ("directory", "begin"):
        command.add_config(parser)
        options = parser.parse_intermixed_args(rest)
        config = config_files.load(options.config, options.overrides).resolved()
        if question == "directory":
            print(config.run.dir)
        else:
            begin(config)
    elif question == "shape":
        parser.add_argument("run", type=Path, metavar="RUN_DIRECTORY")
        print(*shape_of(parser.parse_args(rest).run))
    else:
        raise UserError(f"{question!r}: must be directory, begin or shape")
    return 0


def begin(config: Config) -> None:
    path = Path(config.run.dir) / layout.CONFIG
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        config_files.write(config, path)


def shape_of(run: Path) -> list[str]:
    """`section.key=value` for each key that a checkpoint's weights depend on."""
    tree = config_files.as_tree(run_directory.read_config(run).resolved())
    fixed = run_directory.FIXED_KEYS
    return [f"{section}.{key}={tree[section][key]}" for section in SHAPE_SECTIONS for key in fixed[section]]


if __name__ == "__main__":
    command.run(main)
