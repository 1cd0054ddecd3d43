"""Saving: copy what must be saved, then write it beside the training loop, whole or not at all."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from upscale.checkpoint import manifest
from upscale.distributed.world import World
from upscale.engines import Fragment
from upscale.errors import UserError


@dataclass
class Snapshot:
    """One rank's part of a checkpoint, in memory of its own.

    `parameters` maps a name to (offset, {state: flat float32 tensor}); `lanes` has what lanes saved, by name;
    `content` is the same on every rank and goes into the manifest.
    """

    step: int
    parameters: dict[str, tuple[int, dict[str, torch.Tensor]]]
    lanes: dict[str, torch.Tensor]
    content: dict


def snapshot(step: int, fragments: Iterable[Fragment], lanes: dict[str, torch.Tensor], content: dict) -> Snapshot:
    """Copy to the CPU what this rank must save, with one wait for a GPU: of a replicated piece only its own share."""
    parameters = {}
    for fragment in fragments:
        size = fragment.tensors["weight"].numel()
        begin = size * fragment.replica // fragment.replicas
        end = size * (fragment.replica + 1) // fragment.replicas
        if begin < end:
            copies = {key: _copied(tensor[begin:end]) for key, tensor in fragment.tensors.items()}
            parameters[fragment.name] = (fragment.offset + begin, copies)
    of_lanes = {name: _copied(tensor) for name, tensor in lanes.items()}
    if torch.cuda.is_initialized():
        torch.cuda.current_stream().synchronize()
    return Snapshot(step, parameters, of_lanes, content)


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """In memory of its own on the CPU; from a GPU into pinned memory, where it is once the current stream is done."""
    if not tensor.is_cuda:
        return tensor.detach().to("cpu", copy=True)
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor.detach(), non_blocking=True)


class Writer:
    """Writes snapshots to one folder. A failed save is kept in `failure` and touches no older step.

    With `asynchronous` a thread writes while training goes on; a second save waits for the first. `check` raises
    UserError where this run may not write any more.
    """

    def __init__(
        self,
        folder: Path,
        world: World,
        keep: int,
        asynchronous: bool,
        check: Callable[[], None] = lambda: None,
    ):
        self.check = check
        self.folder, self.keep, self.asynchronous = folder, keep, asynchronous
        self.world = world.beside()
        self.failure: str | None = None
        self._thread: threading.Thread | None = None
        self._crash: BaseException | None = None
        if self.world.is_main:  # left by a run that was killed while saving
            for stale in [*folder.glob(".step-*.partial"), *folder.glob(".step-*.removed")]:
                shutil.rmtree(stale, ignore_errors=True)

    def save(self, taken: Snapshot) -> None:
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(taken,), name="checkpoint", daemon=True)
        self._thread.start()
        if not self.asynchronous:
            self.wait()

    def wait(self) -> None:
        """Return when the last save has ended, well or badly."""
        if self._thread:
            self._thread.join()
            self._thread = None
        if self._crash:
            raise self._crash

    def _run(self, taken: Snapshot) -> None:
        try:
            self._write(taken)
        except BaseException as problem:
            self._crash = problem

    def _write(self, taken: Snapshot) -> None:
        final = manifest.step_folder(self.folder, taken.step)
        partial = self.folder / f".{final.name}.partial"
        error: Exception | None = None
        try:
            if self.world.is_main:
                self.check()
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
        except (OSError, UserError) as problem:
            error = problem
        if not self._failed(error):
            try:
                part: dict = self._write_part(taken, partial)
            except (OSError, SafetensorError) as problem:
                error = problem
            if not self._failed(error):
                self._complete(taken, part, partial, final)
        if self.failure and self.world.is_main:
            shutil.rmtree(partial, ignore_errors=True)

    def _failed(self, error: Exception | None) -> bool:
        """Whether any rank failed; every rank learns why."""
        errors = [
            f"rank {rank}: {text}" for rank, text in enumerate(self.world.gather_objects(str(error or ""))) if text
        ]
        self.failure = "; ".join(errors) or None
        return bool(errors)

    def _write_part(self, taken: Snapshot, partial: Path) -> dict:
        """This rank's files, and its lines of the manifest."""
        rank, files = self.world.rank, {}
        pieces, lanes = {}, {}
        if taken.parameters:
            name = f"parameters-{rank:05d}.safetensors"
            tensors = {
                f"{state}/{key}": t for key, (_, states) in taken.parameters.items() for state, t in states.items()
            }
            files[name] = _save(tensors, partial / name)
            for key, (offset, states) in taken.parameters.items():
                pieces[key] = {"file": name, "offset": offset, "length": states["weight"].numel()}
        if taken.lanes:
            name = f"lanes-{rank:05d}.safetensors"
            files[name] = _save(taken.lanes, partial / name)
            lanes = dict.fromkeys(taken.lanes, name)
        return {"files": files, "pieces": pieces, "lanes": lanes}

    def _complete(self, taken: Snapshot, part: dict, partial: Path, final: Path) -> None:
        parts = self.world.gather_objects(part)
        error = None
        if self.world.is_main:
            content: dict = {"step": taken.step, **taken.content, "files": {}, "pieces": {}, "lanes": {}}
            for one in parts:
                content["files"].update(one["files"])
                content["lanes"].update(one["lanes"])
                for key, piece in one["pieces"].items():
                    content["pieces"].setdefault(key, []).append(piece)
            try:
                manifest.write(partial, content)
                self.check()
                if final.exists():  # an invalid step of the same number, from before a resume
                    shutil.rmtree(final)
                os.replace(partial, final)
                _flush_folder(self.folder)
                self._prune()
            except (OSError, UserError) as problem:
                error = problem
        self._failed(error)

    def _prune(self) -> None:
        """Remove all but the newest `keep` steps and the milestones; an unreadable step is left for the user."""
        removable = []
        for step in manifest.steps(self.folder):
            try:
                content = manifest.read(manifest.step_folder(self.folder, step))
            except manifest.InvalidCheckpoint:
                continue
            if not content.get("milestone"):
                removable.append(step)
        for step in removable[: -self.keep]:
            doomed = self.folder / f".step-{step:08d}.removed"
            os.replace(manifest.step_folder(self.folder, step), doomed)
            if doomed.is_symlink():  # the step itself lies elsewhere and is the user's
                doomed.unlink()
            else:
                shutil.rmtree(doomed)


def _save(tensors: dict[str, torch.Tensor], path: Path) -> dict:
    save_file(tensors, path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "blake2b": manifest.hash_file(path)}


def _flush_folder(folder: Path) -> None:
    """Make a rename survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
