"""`upscale VERB`: every command, each implemented by the module that owns its work."""

from __future__ import annotations

import sys
from importlib import import_module

from upscale.launch import signals

VERBS = {
    "train": ("upscale.train:main", "train the model of a config, or continue its run"),
    "status": ("upscale.cli.status:main", "where a run stands: step, time left, restarts, checkpoints, jobs"),
    "evaluate": ("upscale.verbs:evaluate", "measure a run's checkpoint on tasks and texts beside the baselines"),
    "prepare": ("upscale.cli.prepare:main", "turn Wikipedia, Linux or another text into a corpus to train on"),
    "report": ("upscale.verbs:report", "curves and tables of one or more runs as one HTML page"),
    "export": ("upscale.verbs:export", "weights of a run as one safetensors file"),
    "checkpoint": ("upscale.verbs:checkpoint", "list or verify the checkpoints of a run"),
    "plan": ("upscale.cli.plan:main", "memory, time and GPU hours of a config on a cluster, without a GPU"),
    "sample": ("upscale.verbs:sample", "print rows that a config's sources write, or measure them beside texts"),
    "study": ("upscale.cli.study:main", "chains of trainings at an equal budget, compared: a study file"),
    "bench": ("upscale.cli.bench:main", "measure training steps, or sources, on this machine; compare results"),
}


def main() -> None:
    """The console script. A verb's module, and torch with it, is imported only when it is asked for."""
    signals.leave_quietly()
    arguments = sys.argv[1:]
    if arguments[:1] in (["-h"], ["--help"], []):
        width = max(map(len, VERBS))
        lines = [f"  {verb.ljust(width)}  {text}" for verb, (_, text) in VERBS.items()]
        print("usage: upscale VERB [options]\n\n" + "\n".join(lines) + "\n\n`upscale VERB --help` tells more.")
        raise SystemExit(0 if arguments else 2)
    verb = arguments[0]
    if verb not in VERBS:
        print(f"error: unknown verb {verb!r}; allowed: {', '.join(VERBS)}", file=sys.stderr)
        raise SystemExit(2)
    if verb == "train":
        signals.remember_stop_requests()
    from upscale.console import command

    module, _, function = VERBS[verb][0].partition(":")
    command.run(lambda rest: getattr(import_module(module), function)(rest), arguments[1:])
