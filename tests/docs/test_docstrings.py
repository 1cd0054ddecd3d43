"""Docstrings of the package name files that exist, and nothing that is not in the repository."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT

FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "upscale").rglob("*.py"))


def docstrings(path: Path) -> list[str]:
    """The docstrings of a module, its classes and functions."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds))
    return [text for node in nodes if (text := ast.get_docstring(node))]


@pytest.mark.parametrize("file", FILES)
def test_files_named_in_docstrings_exist(file):
    """Relative to the file's folder, to the package or to the repository."""
    places = ((ROOT / file).parent, ROOT / "upscale", ROOT)
    named = {name for text in docstrings(ROOT / file) for name in re.findall(r"[\w./-]+\.(?:py|md|sh|yaml)\b", text)}
    written = {name for name in named if name == "config.yaml" or "NAME" in name}  # by a run or a study
    missing = [name for name in sorted(named - written) if not any((place / name).exists() for place in places)]
    assert not missing, f"{file} names {missing}"


@pytest.mark.parametrize("file", FILES)
def test_docstrings_do_not_refer_to_what_is_not_here(file):
    assert not [text for text in docstrings(ROOT / file) if re.search(r"\bthe design\b", text)]
