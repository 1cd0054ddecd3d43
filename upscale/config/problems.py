"""What pydantic found wrong with a file of settings, in plain words: the key, what is allowed, what was given."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import pydantic


def found_in(model: type[pydantic.BaseModel], tree: Any, error: pydantic.ValidationError) -> dict[str, str]:
    """One sentence for every wrong place of `tree`, which was read as a `model`, by its key such as `sources[0].kind`.

    Several complaints about one place, as a union makes them, are one sentence.
    """
    described: dict[str, list[str]] = {}
    for detail in error.errors():
        key, message = _described(model, detail)
        described.setdefault(key, []).append(message)
    return {key: ", or ".join(messages) + _given(tree, key) for key, messages in described.items()}


def counted(problems: list[str], where: str) -> str:
    """All problems below one line that counts them: `2 problems in the config:`."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return f"{count} in {where}:\n" + "\n".join(f"  {problem}" for problem in problems)


def nearest(name: str, allowed: Iterable[str]) -> str:
    """What was probably meant, and all that is allowed."""
    allowed = list(allowed)
    near = difflib.get_close_matches(name, allowed, 1, 0.5)
    return (f"did you mean {near[0]}? " if near else "") + f"allowed: {', '.join(allowed)}"


def keys(model: Any) -> dict[str, Any]:
    """Keys and annotations of a section, also of one that may be null; of anything else none."""
    classes = _classes(model)
    if len(classes) != 1 or typing.get_origin(_bare(model)) in (list, dict):
        return {}
    return {field.alias or name: field.annotation for name, field in classes[0].model_fields.items()}


def unknown(key: str, model: Any) -> str:
    """The sentence for a key that a section does not have."""
    return f"unknown key; {nearest(key, keys(model))}"


def _described(model: Any, detail: Mapping[str, Any]) -> tuple[str, str]:
    """The key and one sentence, from one of pydantic's errors."""
    key, owner, location = "", model, detail["loc"]
    for place, part in enumerate(location):
        if isinstance(part, int):
            key, owner = f"{key}[{part}]", _member(owner)
        elif location[place + 1 :] == ("[key]",):
            return _joined(key, part), _not_a_key(part, owner)
        elif part in keys(owner):
            key, owner = _joined(key, part), keys(owner)[part]
        elif variant := _variant(owner, part):
            owner = variant
        elif part == location[-1] and detail["type"] == "extra_forbidden":
            return _joined(key, part), unknown(part, owner)
        elif typing.get_origin(_bare(owner)) is dict:
            key, owner = _joined(key, part), _member(owner)
        # Any other part is pydantic's name for a member of a union, which is no key.
    return key, detail["msg"][0].lower() + detail["msg"][1:]


def _joined(key: str, part: str) -> str:
    return f"{key}.{part}" if key else part


def _given(tree: Any, key: str) -> str:
    """', given VALUE' for a key of the tree that holds a plain value or a list."""
    node = tree
    for part in re.findall(r"[^.\[\]]+", key):
        if isinstance(node, dict) and part in node:
            node = node[part]
        elif isinstance(node, list) and part.isdigit():
            node = node[int(part)]
        else:
            return ""
    return "" if isinstance(node, dict) else f", given {node!r}"


def _bare(annotation: Any) -> Any:
    """Without `Annotated` around it, and without the null that may stand instead."""
    if typing.get_origin(annotation) is Annotated:
        return _bare(typing.get_args(annotation)[0])
    others = [inner for inner in typing.get_args(annotation) if inner is not type(None)]
    return _bare(others[0]) if len(others) == 1 and type(None) in typing.get_args(annotation) else annotation


def _member(annotation: Any) -> Any:
    """What a list or a mapping holds."""
    inner = typing.get_args(_bare(annotation))
    return inner[-1] if inner else annotation


def _not_a_key(key: str, annotation: Any) -> str:
    """The sentence for a key that a mapping does not take: from the names it allows, or its keys' description."""
    names = typing.get_args(_bare(annotation))[0]
    if typing.get_origin(names) is Literal:
        return f"unknown key; {nearest(key, typing.get_args(names))}"
    described = (getattr(field, "description", None) for field in typing.get_args(names)[1:])
    return f"not a name; it must be {next(filter(None, described))}"


def _variant(owner: Any, tag: object) -> type[pydantic.BaseModel] | None:
    """The class that a discriminated union chooses for a tag such as 'lstm'."""
    for candidate in _classes(owner):
        kinds = keys(candidate).get("kind")
        if kinds is not None and tag in typing.get_args(kinds):
            return candidate
    return None


def _classes(annotation: Any) -> list[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    return [found for inner in typing.get_args(annotation) for found in _classes(inner)]
