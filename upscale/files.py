"""Reading and writing files: one YAML dialect for every file and override, and never half a file for a reader."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import pydantic
import yaml

from upscale.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` in one step at the block's end.

    Raises OSError (disk full, no permission); whatever goes wrong in the block, what was at `path` stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file in one step; raises OSError (disk full, no permission) and then leaves the old one as it was."""
    with replacing(path) as file:
        file.write(content)


def write_json(path: Path, tree: Any) -> None:
    """Replace a file by JSON for people and programs; raises OSError and then leaves the old one as it was."""
    write_atomically(path, (json.dumps(tree, indent=1) + "\n").encode())


def parse_json(text: str | bytes) -> Any:
    """The value that a JSON text stands for; raises ValueError, also where it is nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def file_digest(path: Path, algorithm: str) -> str:
    """The digest of a file's bytes in hexadecimal, by an algorithm that hashlib knows; raises OSError."""
    digest, buffer = hashlib.new(algorithm), memoryview(bytearray(1 << 20))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def checked_json(form: str, content: dict, algorithm: str, indent: int | None = None) -> bytes:
    """A JSON object with its format and a checksum of itself, which `parse_checked_json` verifies."""
    content = {"format": form, **content}
    return json.dumps({**content, "checksum": _checksum(content, algorithm)}, indent=indent).encode()


def parse_checked_json(text: bytes, form: str, algorithm: str) -> dict:
    """The object that `checked_json` made a text of; raises ValueError with what is wrong, after the file's name."""
    try:
        content = parse_json(text)
    except ValueError as error:
        raise ValueError(f"cannot be read: {error}") from None
    if not isinstance(content, dict) or content.get("format") != form:
        raise ValueError(f"is not of the format {form}")
    if content.get("checksum") != _checksum(content, algorithm):
        raise ValueError("is damaged: its checksum does not match")
    return content


def _checksum(content: dict, algorithm: str) -> str:
    plain = {key: value for key, value in content.items() if key != "checksum"}
    return hashlib.new(algorithm, json.dumps(plain, sort_keys=True).encode()).hexdigest()


def wrong_form(error: pydantic.ValidationError) -> str:
    """What is wrong with a file whose values pydantic refuses, after the file's name: their places."""
    return f"is not of its form: {', '.join('.'.join(map(str, detail['loc'])) for detail in error.errors())}"


def is_plain_name(name: str) -> bool:
    """Whether a text is the name of a file in a folder, and no path that leads elsewhere."""
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


def read_json_lines(path: Path) -> Iterator[dict]:
    """The objects of a .jsonl file; a last line that was cut off while being written is left out.

    Raises ValueError naming file and line for any other line that is not a JSON object, and the file if it is no text.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError as error:
            if number == len(lines):
                return
            reason = getattr(error, "msg", error)
            raise ValueError(f"{path}, line {number} is not JSON ({reason}): {line[:80]!r}") from None
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number} is not a JSON object: {line[:80]!r}")
        yield record


def append_json_lines(path: Path, records: Iterable[dict]) -> None:
    """Add objects to a .jsonl file, in place of half a line that a crash or a full disk left at its end.

    Nobody else may add to it meanwhile. Raises OSError.
    """
    added = "".join(json.dumps(record) + "\n" for record in records).encode()
    with open(path, "a+b") as file:
        file.seek(0)
        content = file.read()
        whole = content.rfind(b"\n") + 1
        try:
            if content[whole:]:
                parse_json(content[whole:])
                added = b"\n" + added
        except ValueError:
            file.truncate(whole)
        file.write(added)


class Record(pydantic.BaseModel):
    """One object of a .jsonl file; the fields that were not given are not written."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    def as_object(self) -> dict[str, Any]:
        """What the file holds: the fields that were given, in the order of the class."""
        return self.model_dump(exclude_unset=True)


Kind = TypeVar("Kind", bound=Record)


def read_records(path: Path, kind: type[Kind]) -> list[Kind]:
    """The objects of a .jsonl file as records, without a last line that was cut off; none where the file is missing.

    Fields of other versions are left out. Raises ValueError for a file that cannot be read, and naming file, line and
    field for what is no such record.
    """
    try:
        lines = list(read_json_lines(path)) if path.is_file() else []
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    return [_record(kind, line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def _record(kind: type[Kind], line: dict, place: str) -> Kind:
    try:
        return kind.model_validate(line, extra="ignore")
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        if not problem["loc"]:  # what fields say together
            raise ValueError(f"{place}: {problem['msg'].removeprefix('Value error, ')}") from None
        field = ".".join(map(str, problem["loc"]))
        said = "missing" if problem["type"] == "missing" else f"{problem['input']!r}; {problem['msg'].lower()}"
        raise ValueError(f"{place}: the field {field} is {said}") from None


MOST_NODES = 100_000
"""The largest shipped config has about 100 values; a few lines of aliases can stand for billions."""


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 3e-4 is a number; a key given twice and half a surrogate pair (no character) are errors."""

    def construct_scalar(self, node):
        value = super().construct_scalar(node)
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise yaml.constructor.ConstructorError(None, None, "half a surrogate pair is no text", node.start_mark)
        return value

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *anchor`, whose keys may be given again
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would not read back as a text."""


# YAML 1.1 wants a dot and a signed exponent in a float, so that 3e-4 would be a string.
for _either in (_Loader, _Dumper):
    _either.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )


def parse_yaml(text: str) -> Any:
    """The value that a YAML text stands for; raises yaml.YAMLError, also where aliases multiply or run in a circle."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _expanded_nodes(node, {}) > MOST_NODES:
            raise yaml.YAMLError(f"its aliases stand for more than {MOST_NODES:,} values")
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply, or an alias stands inside of what it names") from None
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
        # as 2001-13-45, !!int x, or a list for a key
        raise yaml.YAMLError(f"a value cannot be read: {error}") from None
    finally:
        loader.dispose()


def _expanded_nodes(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for when aliases are written out; RecursionError for a circle."""
    if id(node) not in known:
        children: list = [] if isinstance(node, yaml.ScalarNode) else list(node.value)
        if isinstance(node, yaml.MappingNode):
            children = [each for pair in children for each in pair]
        known[id(node)] = 1 + sum(_expanded_nodes(child, known) for child in children)
    return known[id(node)]


def dump_yaml(tree: Any) -> str:
    """A YAML text that `parse_yaml` reads back as the same value."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)


def reads_as_itself(text: str) -> bool:
    """Whether an override with this text as its value sets this text, without quotes."""
    try:
        return parse_yaml(text) == text
    except yaml.YAMLError:
        return False


def read_yaml(path: Path, kind: str, form: str) -> dict:
    """The mapping in a YAML file; UserError with its `kind` and the `form` it should have for anything else."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = [p.as_posix() for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.as_posix(), siblings, 1)
        raise UserError(f"no {kind} file {path}" + (f"; did you mean {near[0]}?" if near else "")) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {kind} file {path}: {error}") from None
    try:
        tree = parse_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds a {type(tree).__name__}, but {form}")
    return tree
