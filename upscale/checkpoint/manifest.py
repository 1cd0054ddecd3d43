"""What a checkpoint folder holds: finding steps, reading their manifests, checking every byte against its hash."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from upscale.console.text import harmless
from upscale.files import checked_json, file_digest, is_plain_name, parse_checked_json, write_atomically, wrong_form

if TYPE_CHECKING:  # commands that only look at files start without torch
    from upscale.distributed.world import World

FORMAT, HASH = "upscale-checkpoint-1", "blake2b"
MANIFEST = "manifest.json"


class InvalidCheckpoint(Exception):
    """A step that cannot be used; the message names the file and what is wrong with it."""


def step_folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def steps(folder: Path) -> list[int]:
    """The steps that have a folder, oldest first, valid or not."""
    found = (re.fullmatch(r"step-(\d{8,})", path.name) for path in folder.glob("step-*"))
    return sorted(int(match.group(1)) for match in found if match)


def hash_file(path: Path) -> str:
    return file_digest(path, HASH)


def write(path: Path, content: dict) -> None:
    """Save a manifest with a checksum of itself; raises OSError and then leaves nothing."""
    write_atomically(path / MANIFEST, checked_json(FORMAT, content, HASH))


def read(path: Path) -> dict:
    """The manifest of a step's folder, with the form's defaults for what it does not say.

    Raises InvalidCheckpoint when it is missing, damaged, of another format or contradicts itself.
    """
    file = path / MANIFEST
    try:
        content = parse_checked_json(file.read_bytes(), FORMAT, HASH)
        _FORM.validate_json(json.dumps(content), strict=True)
    except FileNotFoundError:
        raise InvalidCheckpoint(f"{path} has no {MANIFEST}: it was never completed") from None
    except OSError as error:
        raise InvalidCheckpoint(f"{file} cannot be read: {error}") from None
    except ValidationError as error:  # a ValueError too
        raise InvalidCheckpoint(f"{file} {harmless(wrong_form(error))}") from None
    except ValueError as error:
        raise InvalidCheckpoint(f"{file} {error}") from None
    if problem := _contradiction(content):
        raise InvalidCheckpoint(f"{file} contradicts itself: {problem}")
    unsaid = {name: field for name, field in _Manifest.model_fields.items() if name not in content}
    return {**content, **{name: copy.copy(field.default) for name, field in unsaid.items()}}


class _Form(BaseModel):
    """What is read of a manifest by name; later versions may add to it."""

    model_config = ConfigDict(extra="allow")


NotNegative = Annotated[int, Field(ge=0, lt=1 << 63)]


class _File(_Form):
    bytes: NotNegative
    blake2b: str


class _Piece(_Form):
    file: str
    offset: NotNegative
    length: NotNegative


class _Spike(_Form):
    step: NotNegative
    first: NotNegative
    action: str


class _Counters(_Form):
    step: NotNegative
    instances: NotNegative
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    skipped_steps: NotNegative = 0
    recent_losses: list[float] = []
    spikes: list[_Spike] = []
    evaluation_owed: bool = False
    wandb_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = "none"


class _Manifest(_Form):
    step: NotNegative
    counters: _Counters
    milestone: bool
    files: dict[str, _File]
    pieces: dict[str, list[_Piece]]
    lanes: dict[str, str]
    world_size: Annotated[int, Field(ge=1)] = 1
    steps_taken: dict[str, NotNegative] = {}
    rounds: dict[str, NotNegative] = {}
    methods: list[str] = []
    config: dict = {}


_FORM = TypeAdapter(_Manifest)


def _contradiction(content: dict) -> str | None:
    """What is wrong with a manifest: files outside of its folder or without a hash, pieces that lie over each other."""
    files = content["files"]
    if strange := [name for name in files if not is_plain_name(name)]:
        return f"{strange[0]!r} is not the name of a file in its folder"
    named = {piece["file"] for pieces in content["pieces"].values() for piece in pieces} | set(
        content["lanes"].values()
    )
    if unknown := sorted(named - set(files)):
        return f"{unknown[0]!r} is not among its files"
    for name, pieces in content["pieces"].items():
        end = 0
        for piece in sorted(pieces, key=lambda piece: piece["offset"]):
            if piece["offset"] < end:
                return f"pieces of {name!r} lie over each other"
            end = piece["offset"] + piece["length"]
    return None


def file_problem(path: Path, expected: dict) -> str | None:
    """What is wrong with one file of a step, if anything."""
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"{path} has {size} bytes instead of {expected['bytes']}"
        if hash_file(path) != expected["blake2b"]:
            return f"{path} is damaged: its hash does not match"
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read: {error}"
    return None


def verify(path: Path, world: World) -> dict:
    """The manifest of a step whose every file was checked, the files being divided over the ranks.

    Raises InvalidCheckpoint, on every rank alike, naming each bad file.
    """
    try:
        content, problems = read(path), []
        for name, expected in list(content["files"].items())[world.rank :: world.size]:
            if problem := file_problem(path / name, expected):
                problems.append(problem)
    except InvalidCheckpoint as error:
        problems = [str(error)]
    found = sorted({problem for part in world.gather_objects(problems) for problem in part})
    if found:
        raise InvalidCheckpoint("; ".join(found))
    return content


def newest_valid(folder: Path, world: World, warn: Callable[[str], None] | None = None) -> tuple[Path, dict] | None:
    """The newest step that passes `verify`, with its manifest; every newer one is named through `warn`.

    Without `warn` rank 0 says so on standard error.
    """
    for step in reversed(world.broadcast_object(steps(folder))):
        path = step_folder(folder, step)
        try:
            return path, verify(path, world)
        except InvalidCheckpoint as error:
            message = f"checkpoint of step {step} cannot be used, trying the one before it: {error}"
            if warn:
                warn(message)
            elif world.is_main:
                print(f"WARNING: {message}", file=sys.stderr, flush=True)
    return None
