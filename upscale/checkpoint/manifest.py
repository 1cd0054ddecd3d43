"""What a checkpoint folder holds: finding steps, reading their manifests, checking every byte against its hash."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from upscale.files import write_atomically

if TYPE_CHECKING:  # commands that only look at files start without torch
    from upscale.distributed.world import World

FORMAT = "upscale-checkpoint-1"
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
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file) -> str:
    """hashlib.file_digest for Python 3.10."""
    digest = hashlib.blake2b()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _checksum(content: dict) -> str:
    plain = {key: value for key, value in content.items() if key != "checksum"}
    return hashlib.blake2b(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def write(path: Path, content: dict) -> None:
    """Save a manifest with a checksum of itself; raises OSError and then leaves nothing."""
    content = {"format": FORMAT, **content}
    write_atomically(path / MANIFEST, json.dumps({**content, "checksum": _checksum(content)}).encode())


def read(path: Path) -> dict:
    """The manifest of a step's folder; raises InvalidCheckpoint when it is missing, damaged or of another format."""
    try:
        content = json.loads((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise InvalidCheckpoint(f"{path} has no {MANIFEST}: it was never completed") from None
    except (OSError, ValueError) as error:
        raise InvalidCheckpoint(f"{path / MANIFEST} cannot be read: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InvalidCheckpoint(f"{path / MANIFEST} is not of the format {FORMAT}")
    if content.get("checksum") != _checksum(content):
        raise InvalidCheckpoint(f"{path / MANIFEST} is damaged: its checksum does not match")
    return content


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
