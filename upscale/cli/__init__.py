"""`upscale COMMAND`: one file a command here, but for `train`, which is upscale/train.py.

Launchers that start modules use `python -m upscale.cli COMMAND`.
"""

from __future__ import annotations

import sys
from importlib import import_module

from upscale.launch import signals

COMMANDS = {
    "train": "train the model of a config, or continue its run",
    "status": "where a run stands: step, time left, restarts, checkpoints, jobs",
    "evaluate": "measure a run's checkpoint on tasks and texts beside the baselines",
    "prepare": "turn Wikipedia, Linux or another text into a corpus to train on",
    "report": "curves and tables of one or more runs as one HTML page",
    "watch": "the same page at an address of this machine, renewed while runs train",
    "export": "weights of a run as one safetensors file",
    "checkpoint": "list or verify the checkpoints of a run",
    "plan": "memory, time and GPU hours of a config on a cluster, without a GPU",
    "generate": "write rows of a config's sources as webdataset shards, for any training loop",
    "sample": "print rows that a config's sources write, or measure them beside texts",
    "study": "chains of trainings at an equal budget, compared: a study file",
    "coordcheck": "whether the model of a config keeps to muP: the mup package, and activations over widths",
    "doctor": "before a long run, on every node: versions, speeds, links, disk, limits, memory",
    "bench": "measure training steps, or sources, on this machine; compare results",
}


def main() -> None:
    """The console script. A command's module, and torch with it, is imported only when it is asked for."""
    signals.leave_quietly()
    arguments = sys.argv[1:]
    if arguments[:1] in (["-h"], ["--help"], []):
        width = max(map(len, COMMANDS))
        lines = [f"  {name.ljust(width)}  {text}" for name, text in COMMANDS.items()]
        print("usage: upscale COMMAND [options]\n\n" + "\n".join(lines) + "\n\n`upscale COMMAND --help` tells more.")
        raise SystemExit(0 if arguments else 2)
    name = arguments[0]
    if name not in COMMANDS:
        print(f"error: unknown command {name!r}; allowed: {', '.join(COMMANDS)}", file=sys.stderr)
        raise SystemExit(2)
    if name == "train":
        signals.remember_stop_requests()
    from upscale.console import command

    module = "upscale.train" if name == "train" else f"upscale.cli.{name}"
    command.run(lambda rest: import_module(module).main(rest), arguments[1:])
