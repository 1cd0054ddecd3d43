"""Progress on a real pseudo-terminal and in a file, against what was counted."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys

import pytest

from upscale.console import progress
from upscale.console.progress import Progress, status_line

PROGRAM = """if True:
    from upscale.console.progress import Progress
    with Progress("reading [a] file", {total}) as progress:
        for _ in range(10):
            progress(5_000_000)
"""


def shown_on_a_terminal(total: int | None) -> tuple[int, str]:
    """Exit code, and what a terminal of 100 columns gets on standard error."""
    ours, theirs = pty.openpty()
    program = PROGRAM.format(total=total)
    environment = {**os.environ, "COLUMNS": "100", "TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "-c", program], stderr=theirs, env=environment)
    os.close(theirs)
    output = b""
    while True:
        try:
            block = os.read(ours, 4096)
        except OSError:  # Linux says so when the other end is closed
            break
        if not block:
            break
        output += block
    os.close(ours)
    return process.wait(timeout=60), output.decode()


def test_a_bar_on_a_terminal():
    """Against the bytes counted: the last state is 100 %, and brackets of the label stay."""
    code, text = shown_on_a_terminal(50_000_000)
    assert code == 0
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r", "\n").strip().splitlines()[-1]
    assert last.startswith("reading [a] file") and "50.0/50.0 MB" in last and "100%" in last


def test_a_bar_without_a_known_total():
    code, text = shown_on_a_terminal(None)
    assert code == 0 and "50.0/? MB" in text


@pytest.mark.parametrize(("total", "line"), [(8_000_000, "x 4.0 MB of 8.0 (50%) 0 s"), (None, "x 4.0 MB 0 s")])
def test_a_line_in_a_file(capsys, total, line):
    """Once at the end of short work."""
    with Progress("x", total) as count:
        count(3_000_000)
        count(1_000_000)
    assert re.sub(r"\d+ s", "0 s", capsys.readouterr().err) == line + "\n"


def test_lines_of_long_work_in_a_file(capsys, monkeypatch):
    """One each time that the seconds between two lines are over, and none at the end of work that failed."""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    with pytest.raises(RuntimeError), Progress("x", 10_000_000) as count:
        count(2_000_000)
        count(2_000_000)
        raise RuntimeError
    assert [line.split(" MB")[0] for line in capsys.readouterr().err.splitlines()] == ["x 2.0", "x 4.0"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_status_line_is_replaced_and_gone_at_the_end(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with status_line(terminal) as show:
        show("1/2 [dyck]")
        show("2/2 [wp]")
    written = terminal.getvalue()
    assert "2/2 [wp]" in written and written.endswith("\x1b[?25h\r\x1b[1A\x1b[2K")


@pytest.mark.parametrize(("stream", "wanted"), [(io.StringIO(), True), (Terminal(), False)])
def test_a_file_and_another_rank_show_no_status_line(stream, wanted):
    with status_line(stream, wanted) as show:
        assert show is None
    assert stream.getvalue() == ""
