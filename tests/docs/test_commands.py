"""Every command, config and piece of Python in the documents is one that the programs accept."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from typing import Any, get_args

import pytest

from tests.docs import commands, markdown
from upscale import cli
from upscale.config import files as config_files
from upscale.config.schema import Config
from upscale.errors import UserError
from upscale.settings import Section

ALL = [command for document in markdown.DOCUMENTS for command in commands.found(document)]
BLOCKS = [block for document in markdown.DOCUMENTS for block in markdown.blocks(document)]


@pytest.fixture(autouse=True)
def root(monkeypatch):
    """Paths in commands are relative to the clone's root."""
    monkeypatch.chdir(markdown.ROOT)


def place(block) -> str:
    return f"{block.document}:{block.line}"


@pytest.mark.parametrize("command", ALL, ids=lambda command: f"{place(command)} {' '.join(command.words)}"[:120])
def test_a_command_is_accepted(command):
    commands.check(command.words)


@pytest.mark.parametrize("block", BLOCKS, ids=place)
def test_no_command_hides_in_a_block_of_another_kind(block):
    checked = "indented" if block.document.startswith("docs/studies/") else "bash"
    if block.language != checked:
        starts = {line.split()[0].removeprefix("./") for line in block.text.splitlines() if line.split()}
        assert not starts & {*commands.CHECKS, "launch/local.sh"}, f"{place(block)}: write it in a block of {checked}"


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "yaml"], ids=place)
def test_a_piece_of_config_is_accepted(block, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(block.text)
    config_files.load(path).resolved()


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "python"], ids=place)
def test_python_is_valid_and_what_it_imports_exists(block):
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "upscale":
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")


def keys(section: type[Section], before: str = "") -> set[str]:
    """Every key of the config, as section.key."""
    found = set()
    for name, field in section.model_fields.items():
        key = before + (field.alias or name)
        found.add(key)
        for inner in sections(field.annotation):
            found |= keys(inner, key + ".")
    return found


def sections(annotation: Any) -> Iterator[type[Section]]:
    """The settings classes in a type, such as those of a list or of one that may be null."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for inner in get_args(annotation):
        yield from sections(inner)


def test_keys_in_the_text_exist():
    known = keys(Config)
    wrong = []
    for document in markdown.DOCUMENTS:
        for line, text in markdown.quoted(document):
            key = text.partition("=")[0].partition(":")[0].strip()
            section, dot, rest = key.partition(".")
            is_key = section in Config.model_fields and dot and rest.replace("_", "").replace(".", "").isalpha()
            if is_key and key not in known and not key.endswith((".yaml", ".py", ".md")):
                wrong.append(f"{document}:{line}: {text}")
    assert not wrong, "\n".join(wrong)


def test_commands_in_the_text_exist():
    known = {*cli.COMMANDS, "--help", "COMMAND", "..."}
    wrong = []
    for document in markdown.DOCUMENTS:
        for line, text in markdown.quoted(document):
            words = text.split()
            if words[0] == "upscale" and len(words) > 1 and words[1] not in known:
                wrong.append(f"{document}:{line}: {text}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "words",
    [
        ("upscale", "trian"),
        ("upscale", "train", "--confg", "configs/smoke.yaml"),
        ("upscale", "train", "--config", "configs/smoke.yaml", "model.widht=3"),
        ("upscale", "train", "--config", "configs/no_such_file.yaml"),
        ("upscale", "evaluate", "--run", "runs/a", "--tasks", "dick"),
        ("torchrun", "--ranks", "2", "upscale/train.py"),
        ("python", "-m", "tests.soak", "--faultz", "3"),
        ("sbatch", "slurm/pretrain_w9999.sh"),
        ("launch/local.sh", "--rank", "8"),
        ("launch/quickstart.sh", "--fast"),
        ("cp", "slurm/no_such_file", "slurm/site.env"),
        ("upscalle", "train"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_is_refused(words):
    with pytest.raises((AssertionError, UserError, SystemExit)):
        commands.check(words)


def test_shell_lines_are_split_as_a_shell_does():
    line = 'A=1 upscale bench "x={a: 1, b: 2}" a{b,c}.json && launch/test.sh -k lanes  # why'
    assert list(commands.split(line)) == [
        ("upscale", "bench", "x={a: 1, b: 2}", "ab.json", "ac.json"),
        ("launch/test.sh", "-k", "lanes"),
    ]
    loop = "for w in 384 512; do upscale plan --config configs/w$w.yaml; done"
    expected = [("upscale", "plan", "--config", f"configs/w{width}.yaml") for width in (384, 512)]
    assert list(commands.split(loop)) == expected
