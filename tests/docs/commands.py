"""The commands of the documents, and whether the programs they name would accept them; nothing is trained or sent.

A command is a line of a block whose language is bash (in generated studies: of an indented block). Loops and braces are
expanded as the shell would. The real parser of each program reads the words and is stopped when it has.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from unittest import mock

from tests.docs import markdown
from tests.docs.markdown import ROOT

# Programs of the system, whose words are not checked further.
SYSTEM = set("cd git source export squeue scontrol scancel tail pip apt-get nvidia-smi ruff".split())


@dataclass(frozen=True)
class Command:
    """One command of a document, as the words that the shell would hand over."""

    document: str
    line: int
    words: tuple[str, ...]


def found(document: str) -> Iterator[Command]:
    """Every command of a document."""
    language = "indented" if document.startswith("docs/studies/") else "bash"
    for block in markdown.blocks(document):
        if block.language == language:
            for line in block.text.replace("\\\n", " ").splitlines():
                for words in split(line):
                    yield Command(document, block.line, words)


def split(line: str) -> Iterator[tuple[str, ...]]:
    """The commands of one line of shell, without comments, prompts and assignments before the program."""
    if loop := re.fullmatch(r"\s*for (\w+) in ([^;]+); do (.*); done\s*(#.*)?", line):
        for value in loop[2].split():
            yield from split(loop[3].replace(f"${loop[1]}", value))
        return
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("&|;"):
            if words:
                yield tuple(words)
            words = []
        elif words or not re.match(r"[A-Z_]+=", word):
            words += braces(word)


def braces(word: str) -> list[str]:
    """What the shell makes of a{b,c}d."""
    if (given := re.fullmatch(r"([^{}\s=]*)\{([^{}\s]+,[^{}\s]+)\}([^{}\s]*)", word)) is None:
        return [word]
    return [given[1] + choice + given[3] for choice in given[2].split(",")]


class Parsed(Exception):
    """A program's own parser has accepted its words; the program goes no further."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options


@contextlib.contextmanager
def stopped_after_parsing():
    """Make every argument parser raise Parsed where it would return."""

    def stopping(method: Callable) -> Callable:
        def parse(self, args=None, namespace=None):
            raise Parsed(method(self, args, namespace))

        return parse

    parser = argparse.ArgumentParser
    patches = [mock.patch.object(parser, name, stopping(getattr(parser, name))) for name in PARSING]
    with patches[0], patches[1]:
        yield


PARSING = ("parse_args", "parse_intermixed_args")


def options_of(main: Callable, words: tuple[str, ...] | None) -> argparse.Namespace:
    """What a program's own parser makes of its words; None: it reads sys.argv."""
    try:
        with stopped_after_parsing():
            main() if words is None else main(list(words))
    except Parsed as parsed:
        return parsed.options
    except SystemExit as error:
        raise AssertionError(f"refused: {' '.join(words or sys.argv)}: exit code {error.code}") from None
    raise AssertionError("the program ended without reading its arguments")


def check(words: tuple[str, ...]) -> None:
    """Raise AssertionError, or the program's own error, when a command would not be accepted."""
    program, rest = words[0].removeprefix("./"), words[1:]
    if program.startswith(("launch/", "slurm/")):
        script(program, rest)
    elif program in CHECKS:
        CHECKS[program](rest)
    else:
        assert program in SYSTEM, f"unknown program {program}: teach tests/docs/commands.py what it accepts"


def upscale(words: tuple[str, ...]) -> None:
    """`upscale COMMAND ...`, through the console script's own main."""
    from upscale import cli
    from upscale.console import command
    from upscale.launch import signals

    if words == ("--help",):
        return
    with (
        mock.patch.object(command, "run", lambda main, arguments: main(arguments)),
        mock.patch.object(signals, "leave_quietly"),
        mock.patch.object(signals, "remember_stop_requests"),
        mock.patch.object(sys, "argv", ["upscale", *words]),
    ):
        options = options_of(cli.main, None)
    configured(words[0], options)


def configured(name: str, options: argparse.Namespace) -> None:
    """Load what the options of a command name: configs with their overrides, tasks, study files."""
    from upscale.config import files
    from upscale.evaluation import suite
    from upscale.study import loading

    if name == "study":
        loading.load(options.file)
    elif getattr(options, "stats", None):
        for given in options.stats:
            assert not given.endswith(".yaml") or (ROOT / given).is_file(), f"no config {given}"
    elif hasattr(options, "overrides"):
        files.load(options.config, options.overrides).resolved()
    if getattr(options, "tasks", None):
        suite.check_names(options.tasks)


def python(words: tuple[str, ...]) -> None:
    """`python -m MODULE ...` or `python FILE ...`."""
    if words[:2] == ("-m", "pytest"):
        return pytest(words[2:])
    if words[0] == "-m":
        name, rest = words[1], words[2:]
    else:
        assert (ROOT / words[0]).is_file(), f"no file {words[0]}"
        name, rest = words[0].removesuffix(".py").replace("/", "."), words[1:]
    if name == "upscale.train":
        return upscale(("train", *rest))
    if name == "upscale.cli":
        return upscale(rest)
    name = f"{name}.__main__" if (ROOT / name.replace(".", "/")).is_dir() else name
    with mock.patch.object(sys, "argv", [name, *rest]):
        options_of(importlib.import_module(name).main, None)


def pytest(words: tuple[str, ...]) -> None:
    for word in words:
        if word.startswith("tests"):
            assert (ROOT / word.partition("::")[0]).exists(), f"no tests {word}"


def torchrun(words: tuple[str, ...]) -> None:
    from torch.distributed.run import get_args_parser

    options = get_args_parser().parse_args(list(words))
    python(("-m",) * options.module + (options.training_script, *options.training_script_args))


def deepspeed(words: tuple[str, ...]) -> None:
    from deepspeed.launcher.runner import parse_args

    options = parse_args(list(words))
    python(("-m",) * options.module + (options.user_script, *options.user_args))


def srun(words: tuple[str, ...]) -> None:
    """What srun starts, after its own options, each `--name value` or `--name=value`."""
    words = list(words)
    while words[0].startswith("-"):
        del words[: 1 if "=" in words[0] else 2]
    check(tuple(words))


def sbatch(words: tuple[str, ...]) -> None:
    """The script, after sbatch's own options, each `--name` or `--name=value`."""
    place = next(place for place, word in enumerate(words) if not word.startswith("-"))
    script(words[place], words[place + 1 :])


def script(path: str, words: tuple[str, ...]) -> None:
    """A script of launch/ or slurm/, and the words that it hands on."""
    assert os.access(ROOT / path, os.X_OK), f"{path} is no script, or may not be executed"
    if path == "launch/local.sh":
        from upscale.launch import supervisor

        configured("train", options_of(supervisor.main, words))
    elif path == "launch/gpu_check.sh":
        from upscale.bench import gpu_check

        options_of(gpu_check.main, words)
    elif path.startswith("slurm/pretrain_"):
        (given,) = re.findall(r'^pretrain --config (\S+) "\$@"$', (ROOT / path).read_text(), re.MULTILINE)
        upscale(("train", "--config", given, *words))
    elif path == "slurm/evaluate.sh":
        upscale(("evaluate", "--run", *words))
    elif path == "slurm/doctor.sh":
        upscale(("doctor", *words))
    elif path == "slurm/study.sh":
        parser = argparse.ArgumentParser(allow_abbrev=False)
        for name in ("--config", "--milestones", "--template"):
            parser.add_argument(name)
        parser.add_argument("--dry-run", action="store_true")
        parser.add_argument("overrides", nargs="*")
        configured("train", parser.parse_intermixed_args(words))
    elif path == "launch/test.sh":
        pytest(words)
    elif path in ("slurm/finetune.sh", "slurm/report.sh"):
        assert 1 <= len(words) <= 2, f"{path} takes a run directory, and perhaps a step"
    else:
        assert not words, f"{path} takes no arguments, given {words}"


def copy(words: tuple[str, ...]) -> None:
    assert (ROOT / words[0]).exists(), f"no file {words[0]}"


CHECKS = {
    "upscale": upscale,
    "python": python,
    "pytest": pytest,
    "torchrun": torchrun,
    "deepspeed": deepspeed,
    "srun": srun,
    "sbatch": sbatch,
    "cp": copy,
}
