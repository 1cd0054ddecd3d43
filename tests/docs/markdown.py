"""Reading the documents: their code blocks, links, headings, and lists of rooms."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "slurm/README.md")
)


@dataclass(frozen=True)
class Block:
    """One code block: between fences, with their language, or indented by four spaces (language: indented)."""

    document: str
    line: int
    language: str
    text: str


def blocks(document: str) -> Iterator[Block]:
    """The code blocks of a document, in order."""
    lines = (ROOT / document).read_text(encoding="utf-8").splitlines()
    language, start, kept = None, 0, []
    for number, line in enumerate([*lines, ""], 1):
        if language is None:
            previous = lines[number - 2] if number > 1 else ""
            if fence := re.fullmatch(r"\s*```(\w*)", line):
                language, start, kept = fence[1] or "none", number, []
            elif line.startswith("    ") and not previous.strip():
                language, start, kept = "indented", number, [line[4:]]
        elif language == "indented":
            following = lines[number] if number < len(lines) else ""
            if line.startswith("    ") or (not line.strip() and following.startswith("    ")):
                kept.append(line[4:])
            else:
                yield Block(document, start, language, "\n".join(kept))
                language = None
        elif line.strip() == "```":
            yield Block(document, start, language, "\n".join(kept))
            language = None
        else:
            kept.append(line)
    assert language is None, f"{document}:{start}: a code block without an end"


def prose(document: str) -> list[tuple[int, str]]:
    """Numbered lines that are not in a code block between fences."""
    found, inside = [], False
    for number, line in enumerate((ROOT / document).read_text(encoding="utf-8").splitlines(), 1):
        if line.strip().startswith("```"):
            inside = not inside
        elif not inside:
            found.append((number, line))
    return found


def links(document: str) -> Iterator[tuple[int, str]]:
    """Line and target of every link and picture."""
    for number, line in prose(document):
        for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", line)):
            yield number, target


def quoted(document: str) -> Iterator[tuple[int, str]]:
    """Line and text of everything between backquotes; a quotation does not go over a line's end."""
    for number, line in prose(document):
        for text in re.findall(r"`([^`]+)`", line):
            yield number, text


def anchors(document: str) -> set[str]:
    """The names by which GitHub links to a document's headings."""
    titles = (line.lstrip("#").strip() for _, line in prose(document) if re.match(r"#{1,6} ", line))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def rooms(document: str) -> dict[str, str]:
    """The list of rooms in a document: what each is, by its name, in the order that it gives.

    It is the one code block whose language is `rooms`: a room a line, its name first.
    """
    (block,) = (block for block in blocks(document) if block.language == "rooms")
    pairs = (line.split(maxsplit=1) for line in block.text.splitlines())
    return {name.removesuffix(".py").removesuffix("/"): text for name, text in pairs}
