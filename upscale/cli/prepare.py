"""`upscale prepare`: one corpus from what a user has, or from its public address, to shards and an index."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from upscale.console import command
from upscale.corpora.prepare import Request, prepare
from upscale.corpora.recipes import RECIPES
from upscale.corpora.shards.index import Index
from upscale.corpora.work import parallel
from upscale.errors import UserError


def main(arguments: list[str]) -> int:
    own = own_options()
    given = _parser(own).parse_args(arguments)
    asked = {option: value for option in own if (value := getattr(given, option)) is not None}
    for option, value in asked.items():
        corpora = [name for name, field in own[option].items() if value in (words(field) or [value])]
        if given.corpus not in corpora:
            raise UserError(f"{flag(option)} {value} is for {' and '.join(corpora)} only, not for {given.corpus}")
    if given.processes < 1:
        raise UserError(f"--processes {given.processes}: allowed: 1 or more")
    if given.bytes is not None:
        asked["take"] = None if given.bytes == "all" else given.bytes
    try:
        recipe = RECIPES[given.corpus](**asked)
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(f"{flag(str(problem['loc'][0]))} {problem['input']}: {problem['msg'].lower()}") from None
    request = Request(
        recipe=recipe,
        to=given.to,
        source=given.source,
        processes=given.processes,
        checksum=not given.no_checksum,
    )
    print(_summary(request.to, prepare(request)))
    return 0


def own_options() -> dict[str, dict[str, FieldInfo]]:
    """The options that only some corpora have: by option and corpus, the field of its recipe."""
    found: dict[str, dict[str, FieldInfo]] = {}
    for name, recipe in RECIPES.items():
        for option, field in recipe.own_options().items():
            found.setdefault(option, {})[name] = field
    return found


def words(field: FieldInfo) -> tuple[str, ...]:
    """The words that a field may be; none where it is a text or a number."""
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _parser(own: dict[str, dict[str, FieldInfo]]) -> argparse.ArgumentParser:
    parser = command.parser("prepare", "Turn a text into a corpus: webdataset shards of three splits, and an index.")
    parser.add_argument(
        "corpus", choices=RECIPES, help="; ".join(f"{name}: {recipe.definition}" for name, recipe in RECIPES.items())
    )
    parser.add_argument("--to", required=True, type=Path, metavar="DIR", help="folder to write, new or empty")
    parser.add_argument(
        "--from",
        dest="source",
        metavar="FILE|DIR|ARCHIVE|URL",
        help="; ".join(
            f"{name}: {recipe.accepts}" + (f"; default {recipe.address}" if recipe.address else "")
            for name, recipe in RECIPES.items()
        ),
    )
    defaults = {name: take for name, recipe in RECIPES.items() if (take := recipe.model_fields["take"].default)}
    parser.add_argument(
        "--bytes",
        type=_bytes,
        metavar="N",
        help="take the first N bytes of text (25e6), or `all`; default: "
        + ", ".join(["all", *(f"{name} {take / 1e6:g}e6" for name, take in defaults.items())]),
    )
    for option, fields in own.items():
        choices = tuple(dict.fromkeys(word for field in fields.values() for word in words(field)))
        number = any(field.annotation is float for field in fields.values())
        parser.add_argument(
            flag(option),
            dest=option,
            choices=choices or None,
            type=float if number else str,
            metavar=None if choices else "SHARE" if number else "NAME",
            help="; ".join(f"{name}: {field.description}" for name, field in fields.items()),
        )
    parser.add_argument(
        "--processes", type=int, default=parallel.usable_processes(), metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--no-checksum", action="store_true", help="accept another content under a known name or address"
    )
    return parser


def _bytes(text: str) -> int | str:
    return text if text == "all" else command.count(text, "bytes, such as 25e6, or `all`")


def _summary(folder: Path, written: Index) -> str:
    sizes = {split: written.split_bytes(split) for split in written.splits}
    lines = [f"{folder}: {written.corpus}, {sum(sizes.values()):,} bytes from {written.provenance.get('input')}"]
    lines += [f"  {split:11}{size:>16,} bytes {len(written.splits[split]):>6} shards" for split, size in sizes.items()]
    return "\n".join([*lines, f"  licence: {written.licence}"])
