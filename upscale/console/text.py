"""Tables, durations and sizes as text, the same on a terminal and in a file."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table


def aligned_table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Aligned lines without colours: the first `words` columns to the left, numbers to the right."""
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    for index, title in enumerate(head):
        drawn.add_column(title, justify="left" if index < words else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(*row)
    output = io.StringIO()
    Console(file=output, width=10_000, color_system=None, markup=False, highlight=False).print(drawn)
    return "\n".join(line.rstrip() for line in output.getvalue().rstrip("\n").split("\n"))


def harmless(text: str) -> str:
    """A text that a terminal shows and does not obey: control characters but tabs and ends of lines, marks that turn
    the direction of writing, and halves of surrogate pairs are written as \\x1b, \\u202e."""
    return _COMMANDS.sub(lambda found: f"\\x{ord(found[0]):02x}" if found[0] < "\x80" else ascii(found[0])[1:-1], text)


_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def duration(seconds: float) -> str:
    """1:02:03 for 3723 seconds, 2d 1:02:03 with days."""
    days, rest = divmod(int(seconds), 86400)
    clock = f"{rest // 3600}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days}d {clock}" if days else clock


def size(byte_count: float) -> str:
    """Decimal megabytes, from 100 MB on gigabytes, as data sheets give them."""
    return f"{byte_count / 1e9:.1f} GB" if byte_count >= 1e8 else f"{byte_count / 1e6:.1f} MB"
