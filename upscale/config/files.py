"""Config files: reading YAML and overrides into the tree with every problem at once, and writing the resolved tree."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic
import yaml

import upscale
from upscale.config.problems import counted, found_in, keys, unknown
from upscale.config.schema import Config, problems_between_sections
from upscale.errors import UserError
from upscale.files import dump_yaml, parse_yaml, read_yaml, write_atomically

PACKAGES = ("upscale", "torch", "deepspeed", "mup", "numpy")


class ConfigError(UserError):
    """Every problem of a config, one a line."""

    def __init__(self, problems: list[str]):
        super().__init__(counted(problems, "the config"))
        self.problems = problems


def load(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply `section.key=value` overrides.

    Raises ConfigError naming every unknown key, wrong type and impossible combination at once.
    """
    form = f"a config is a mapping of sections: {', '.join(keys(Config))}"
    tree = {} if path is None else read_yaml(Path(path), "config", form)
    return from_tree(tree, overrides, str(path) if path is not None else "defaults")


def from_tree(tree: dict, overrides: Sequence[str] = (), origin: str = "the values given") -> Config:
    """The config of a tree of plain values, which overrides may change; `origin` is what messages call the tree.

    Raises ConfigError as `load` does.
    """
    problems: list[str] = []
    tree.pop("versions", None)  # written beside a resolved config, so that it can be run again
    origins: dict[str, str] = {}
    for override in overrides:
        problem = _apply(tree, override, origins)
        if problem:
            problems.append(problem)
    sections = _validate(tree, origin, origins, problems)
    for key, message in problems_between_sections(sections):
        problems.append(f"{_where(key, origin, origins)}: {key}: {message}")
    if problems:
        raise ConfigError(problems)
    return Config.model_validate(sections)


def _apply(tree: dict, override: str, origins: dict[str, str]) -> str | None:
    """Set one `section.key=value` in the tree; return what is wrong with it, if anything."""
    key, separator, text = override.partition("=")
    key = key.strip().lstrip("-")
    if not separator or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", key):
        return f"override {override!r}: must be section.key=value, for example model.width=384"
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        return f"override {override!r}: the value is not valid YAML: {' '.join(str(error).split())}"
    *parents, leaf = key.split(".")
    node = tree
    for depth, name in enumerate(parents):
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            return f"override {override!r}: {'.'.join(parents[: depth + 1])} is a value, not a section"
    node[leaf] = value
    origins[key] = f"override {override!r}"
    return None


def _validate(tree: dict, origin: str, origins: dict, problems: list[str]) -> dict[str, pydantic.BaseModel]:
    """The valid sections; what is wrong with the others is appended to `problems`."""
    sections: dict[str, pydantic.BaseModel] = {}
    for name in tree:
        if name not in Config.model_fields:
            problems.append(f"{_where(str(name), origin, origins)}: {name}: {unknown(str(name), Config)}")
    for name, field in Config.model_fields.items():
        section: Any = field.annotation
        try:
            value = tree.get(name, {})
            sections[name] = section.model_validate({} if value is None else value)
        except pydantic.ValidationError as error:
            for place, message in found_in(section, value, error).items():
                key = name + ("" if place.startswith("[") or not place else ".") + place
                problems.append(f"{_where(key, origin, origins)}: {key}: {message}")
    return sections


def _where(key: str, origin: str, origins: dict[str, str]) -> str:
    """The file or the override that a key came from."""
    bare = re.sub(r"\[\d+\]", "", key)
    given = [text for name, text in origins.items() if bare == name or bare.startswith(name + ".")]
    return given[-1] if given else origin


def as_tree(config: Config) -> dict:
    """The config as plain YAML values under the names the user writes."""
    return config.model_dump(mode="json", by_alias=True)


def versions() -> dict[str, str]:
    """Versions of what ran, and the commit with '-dirty' when the tree had changes; 'unknown' outside a checkout."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}, "commit": _commit()}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """Of the checkout whose top holds this package: a repository further out tells nothing of it."""
    top = Path(upscale.__file__).resolve().parents[1]
    try:
        if Path(_git(top, "rev-parse", "--show-toplevel")).resolve() != top:
            return "unknown"
        return _git(top, "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def write(config: Config, path: Path) -> None:
    """Save the tree with versions and commit; the file can be given to --config again."""
    tree = {**as_tree(config), "versions": versions()}
    write_atomically(path, dump_yaml(tree).encode())
