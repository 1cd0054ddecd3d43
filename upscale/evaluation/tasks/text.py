"""Tasks that are real texts: short excerpts that ship with the package, or the user's own fuller files.

One byte is one character. The folder `texts` beside this one has the excerpts, with their licences. They measure
zero-shot models; a model fine-tuned on a corpus that contains them needs that corpus's held-out split instead: a folder
with prepared corpora, or one of them, as `evaluation.data_dir`.
"""

from __future__ import annotations

import hashlib
import lzma
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from upscale.corpora.shards import index
from upscale.corpora.shards.reading import Corpus
from upscale.evaluation.dataset import Dataset, EvaluationError
from upscale.evaluation.tasks.base import Task

SUFFIXES = ("", ".txt", ".test")


@dataclass(frozen=True)
class TextTask(Task):
    """A real text; `sha256` is that of the shipped excerpt, uncompressed, None where none ships."""

    sha256: str | None = None

    def load(self, data_dir: str | Path | None = None, *, split: str = "validation") -> Dataset:
        """The text from `data_dir`, else the shipped excerpt.

        `data_dir` may hold a file NAME, NAME.txt or NAME.test, used whole, or a prepared corpus in a folder NAME, or it
        may be one itself; of a corpus the given held-out split is used. A text with neither is a skipped dataset that
        says why.

        Raises UserError when data_dir is no directory, a file in it is empty, cannot be read or is there under two
        names, a corpus is not complete, or a shipped excerpt is damaged.
        """
        if data_dir is not None and (found := _find(self.name, Path(data_dir))) is not None:
            if found.is_dir():
                data, used = Corpus.open(found, splits=[split]).splits[split].text(), split
            else:
                data, used = _read(found), "data_dir"
            return Dataset(self.name, "text", data, used)
        if self.sha256 is not None:
            return Dataset(self.name, "text", _excerpt(self.name, self.sha256), "excerpt")
        names = " or ".join(self.name + suffix for suffix in SUFFIXES)
        reason = (
            f"no excerpt of {self.name} ({self.definition}) is shipped: put a file {names} into evaluation.data_dir"
        )
        return Dataset(self.name, "text", np.empty(0, np.uint8), None, skipped=reason)


def _find(name: str, directory: Path) -> Path | None:
    """A text's file or prepared corpus; a folder NAME that is neither empty nor prepared is named by `Corpus.open`."""
    if not directory.is_dir():
        raise EvaluationError(f"evaluation.data_dir is {str(directory)!r}, which is not a directory")
    if (directory / index.INDEX).is_file():
        return directory if index.read(directory).corpus == name else None
    found = [file for suffix in SUFFIXES if (file := directory / (name + suffix)).is_file()]
    if (directory / name).is_dir() and any((directory / name).iterdir()):
        found.append(directory / name)
    if len(found) > 1:
        raise EvaluationError(f"evaluation.data_dir has {' and '.join(map(str, found))}: keep one of them")
    return found[0] if found else None


def _read(file: Path) -> np.ndarray:
    try:
        data = np.fromfile(file, np.uint8)
    except OSError as error:
        raise EvaluationError(f"cannot read {file} in evaluation.data_dir: {error.strerror}") from error
    if len(data) == 0:
        raise EvaluationError(f"{file} in evaluation.data_dir is empty")
    return data


def _excerpt(name: str, sha256: str) -> np.ndarray:
    file = resources.files("upscale.evaluation").joinpath("texts", f"{name}.xz")
    advice = "install the package again, or put your own file into evaluation.data_dir"
    try:
        content = lzma.decompress(file.read_bytes())
    except (OSError, lzma.LZMAError, EOFError) as error:
        raise EvaluationError(f"the shipped text {name}.xz cannot be read ({error}): {advice}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise EvaluationError(f"the shipped text {name}.xz has changed (SHA-256 {digest}, not {sha256}): {advice}")
    return np.frombuffer(content, np.uint8)
