"""What the scripts in slurm/ ask Python: `python -m upscale.launch.slurm.questions QUESTION ...`.

directory --config F [overrides]   the run directory of a training command, whose config is checked
begin     --config F [overrides]   makes it and writes its config.yaml, unless the run has begun already
claim     RUN_DIRECTORY            keeps it for this job until that has ended; exit code 2 when it is another's
shape     RUN_DIRECTORY --nodes N --ranks-per-node M --config F [overrides]
                                   overrides that give this config the model of that run, so that it fits these GPUs
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from upscale.checkpoint import layout, lock
from upscale.console import command
from upscale.errors import UserError

if TYPE_CHECKING:
    from upscale.config import Config


def main(arguments: list[str] | None = None) -> int:
    """Answers one question. Configs bring torch with them, so they are imported only where one is read."""
    question, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    parser = argparse.ArgumentParser(prog=f"python -m upscale.launch.slurm.questions {question}", allow_abbrev=False)
    if question in ("directory", "begin"):
        command.add_config(parser)
        options = parser.parse_intermixed_args(rest)
        from upscale.config import files as config_files

        config = config_files.load(options.config, options.overrides).resolved()
        if question == "directory":
            print(config.run.dir)
        else:
            begin(config)
    elif question == "claim":
        parser.add_argument("run", type=Path, metavar="RUN_DIRECTORY")
        lock.claim(parser.parse_args(rest).run)
    elif question == "shape":
        parser.add_argument("run", type=Path, metavar="RUN_DIRECTORY")
        parser.add_argument("--nodes", type=int, required=True, metavar="N")
        parser.add_argument("--ranks-per-node", type=int, required=True, metavar="M")
        command.add_config(parser)
        options = parser.parse_intermixed_args(rest)
        ranks = options.nodes, options.ranks_per_node
        from upscale.launch.slurm import shape

        print(*shape.shape_of(options.run, *ranks, options.config, options.overrides))
    else:
        raise UserError(f"{question!r}: must be directory, begin, claim or shape")
    return 0


def begin(config: Config) -> None:
    from upscale.config import files as config_files

    path = Path(config.run.dir) / layout.CONFIG
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        config_files.write(config, path)


if __name__ == "__main__":
    command.run(main)
