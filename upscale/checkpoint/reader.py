"""Loading: any world, engine or stage picks the ranges it needs out of the pieces that were saved."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from upscale.checkpoint.manifest import InvalidCheckpoint
from upscale.engines import Fragment


class Reader:
    """One valid step; `content` is its manifest. Files are opened once and read by range, never as a whole.

    They are read, not mapped: a mapped file that is cut meanwhile ends the process by SIGBUS without a word.
    """

    def __init__(self, path: Path, content: dict):
        self.path, self.content = path, content
        self._open: dict[str, safe_open] = {}

    def _file(self, name: str):
        if name not in self._open:
            try:
                self._open[name] = safe_open(self.path / name, framework="pt", backend="pread")
            except (OSError, SafetensorError) as error:
                raise InvalidCheckpoint(f"{self.path / name} is not a safetensors file: {error}") from None
        return self._open[name]

    def load(self, fragments: Iterable[Fragment], states: Iterable[str] | None = None) -> None:
        """Fill every fragment's tensors, or only those of the given names, in place.

        Raises InvalidCheckpoint when a parameter or a part of one was not saved.
        """
        for fragment in fragments:
            for state in fragment.tensors if states is None else states:
                self._fill(state, fragment.name, fragment.offset, fragment.tensors[state])

    @torch.no_grad()
    def _fill(self, state: str, name: str, offset: int, target: torch.Tensor) -> None:
        missing = target.numel()
        for piece in self.content["pieces"].get(name, []):
            begin = max(offset, piece["offset"])
            end = min(offset + target.numel(), piece["offset"] + piece["length"])
            if begin < end:
                saved = self._range(piece, f"{state}/{name}", begin - piece["offset"], end - piece["offset"])
                target[begin - offset : end - offset] = saved
                missing -= end - begin
        if missing:
            raise InvalidCheckpoint(f"{self.path} lacks {missing} of {target.numel()} elements of {state} of {name!r}")

    def _range(self, piece: dict, key: str, begin: int, end: int) -> torch.Tensor:
        file = self._file(piece["file"])
        try:
            saved = file.get_slice(key)
            held, said = (saved.get_dtype(), saved.get_shape()), ("F32", [piece["length"]])
            if held != said:
                raise InvalidCheckpoint(f"{self.path / piece['file']} holds {key!r} as {held}, not as {said}")
            return saved[begin:end]
        except SafetensorError as error:
            raise InvalidCheckpoint(f"{key!r} cannot be read from {self.path / piece['file']}: {error}") from None

    def lane(self, name: int | str) -> torch.Tensor:
        """What a lane saved: its buffer (buffer rows, context + 1) as `LANE`, its rows' sources as `origins/LANE`."""
        file = self.content["lanes"].get(str(name))
        if file is None:
            raise InvalidCheckpoint(f"{self.path} has no lane {name}")
        try:
            return self._file(file).get_tensor(str(name))
        except SafetensorError as error:
            raise InvalidCheckpoint(f"lane {name} cannot be read from {self.path / file}: {error}") from None


def whole_parameters(model: torch.nn.Module) -> list[Fragment]:
    """Every parameter of an unsharded float32 model as one fragment with its weight only."""
    return [Fragment(name, 0, {"weight": parameter.detach().view(-1)}) for name, parameter in model.named_parameters()]
