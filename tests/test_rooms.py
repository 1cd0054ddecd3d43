"""Imports go down only: from a higher room of docs/architecture.md to a lower one, and never in a circle."""

from __future__ import annotations

import ast
import functools
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import upscale
from tests.docs import markdown

PACKAGE = markdown.ROOT / "upscale"


def name_of(path: Path) -> str:
    """The dotted name of a module, or of a package by its __init__.py."""
    named = path.parent if path.name == "__init__.py" else path.with_suffix("")
    return ".".join(named.relative_to(PACKAGE.parent).parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def order() -> list[str]:
    """The rooms from low to high, as docs/architecture.md lists them."""
    return list(markdown.rooms("docs/architecture.md"))


@functools.cache
def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports at run time, in functions too; type-only imports are left out."""
    found = {module for node in _run_time(ast.parse(path.read_text())) for module in _modules(node)}
    return found - {"upscale"}  # which Python imports before any of its modules


def _run_time(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below, except what stands under `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in child.orelse:
                yield other
                yield from _run_time(other)
            continue
        yield child
        yield from _run_time(child)


def _modules(node: ast.AST) -> Iterator[str]:
    """What one import statement names: `from upscale import files` is upscale.files."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in MODULES)
    elif isinstance(node, ast.ImportFrom):
        assert not node.level, f"a relative import in line {node.lineno}: write the module's whole name"
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            if inner in MODULES:
                yield inner
            elif node.module in MODULES:
                yield node.module


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def test_the_order_names_every_room_once():
    found = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert sorted(order()) == sorted(found - {"__init__"})


@pytest.mark.parametrize("name", order())
def test_a_room_imports_from_lower_rooms_only(name):
    places = {other: place for place, other in enumerate(order())}
    upward = [
        f"{module} imports {other}"
        for module, path in MODULES.items()
        if room(module) == name
        for other in sorted(imports(path))
        if places.get(room(other), len(places)) > places[name]
    ]
    assert not upward, "\n".join(upward)


def test_no_modules_import_each_other_in_a_circle():
    graph = {module: imports(path) - {module} for module, path in MODULES.items() if module != "upscale"}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        raise AssertionError(" imports ".join(reversed(error.args[1]))) from None


def test_the_package_itself_imports_nothing():
    """Its functions come when they are asked for: all that it says it has, and no others."""
    code = "import sys; before = {*sys.modules}; import upscale; print(*{*sys.modules} - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [name for name in done.stdout.split() if name.split(".")[0] not in sys.stdlib_module_names] == ["upscale"]
    assert all(callable(getattr(upscale, name)) for name in upscale.__all__) and {*upscale.__all__} < {*dir(upscale)}
    with pytest.raises(AttributeError, match="module 'upscale' has no attribute 'rowz'"):
        upscale.rowz  # noqa: B018


@pytest.mark.parametrize(
    "text, expected",
    [
        ("from upscale import files", {"upscale.files"}),
        ("from upscale.files import write_atomically", {"upscale.files"}),
        ("import upscale.config.schema", {"upscale.config.schema"}),
        ("def late():\n    from upscale.config import Config", {"upscale.config"}),
        ("if TYPE_CHECKING:\n    from upscale.config import Config", set()),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    from upscale import errors", {"upscale.errors"}),
        ("import torch", set()),
        ("import upscale", set()),
    ],
)
def test_imports_are_found(text, expected, tmp_path):
    path = tmp_path / "module.py"
    path.write_text(text)
    assert imports(path) == expected
