"""The tables of docs/planning.md that `upscale plan` prints."""

from __future__ import annotations

import shlex

import pytest

from tests.docs import commands, markdown
from upscale.cli import plan

COMMANDS = [one for one in commands.found("docs/planning.md") if {"--scaling", "h200"} <= set(one.words)]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: shlex.join(command.words))
def test_a_table_is_what_its_command_prints(command, capsys, monkeypatch):
    """Against the program itself, character by character."""
    monkeypatch.chdir(markdown.ROOT)
    assert plan.main(list(command.words[2:])) == 0
    tables = [block.text.strip() for block in markdown.blocks("docs/planning.md") if block.language == "text"]
    printed = "\n".join(line.rstrip() for line in capsys.readouterr().out.strip().splitlines())
    assert len(COMMANDS) == len(tables) == 3
    assert printed in tables
