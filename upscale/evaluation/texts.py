"""The paper's real texts: short excerpts that ship with the package, or the user's own fuller files.

One byte is one character. The excerpts are described, with their licences, in texts/README.md. They measure zero-shot
models; a model fine-tuned on a corpus that contains them needs that corpus's held-out split instead: a folder with
prepared corpora, or one of them, as `evaluation.data_dir`.
"""

from __future__ import annotations

import hashlib
import lzma
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from upscale.corpora import index
from upscale.corpora.reading import Corpus
from upscale.evaluation.dataset import Dataset, EvaluationError

HELD_OUT_SPLITS = ("validation", "test")
SUFFIXES = ("", ".txt", ".test")


@dataclass(frozen=True)
class Text:
    """A real text of the paper; `sha256` is that of the shipped excerpt, uncompressed, None where none ships."""

    name: str
    definition: str
    sha256: str | None = None


TEXTS: dict[str, Text] = {
    "wp": Text(
        "wp",
        "English Wikipedia as XML, as in enwik8",
        "d18e161410cbdea841354e9f6cad3692b7f4afd9e38ee67088025ebe85cbdcd4",
    ),
    "german": Text("german", "Die Frauenfrage by Lily Braun, in German (Project Gutenberg 14075)"),
    "code": Text(
        "code",
        "D3.js, minified JavaScript",
        "f2094bbf6141b359722c4fe454eb6c4b0f0e42cc10cc7af921fc158fceb86539",
    ),
    "linux": Text(
        "linux",
        "C sources of the Linux kernel, runs of whitespace collapsed to one space",
        "1b90835592f23f19fdbac0531ce2a7cb11022bcd88cea07a005aba906438dfe4",
    ),
}


def load_text(name: str, data_dir: str | Path | None = None, split: str = "validation") -> Dataset:
    """The text from `data_dir`, else the shipped excerpt.

    `data_dir` may hold a file NAME, NAME.txt or NAME.test, used whole, or a prepared corpus in a folder NAME, or it may
    be one itself; of a corpus the given held-out split is used. A text with neither is a skipped dataset that says why.

    Raises UserError when data_dir is no directory, a file in it is empty, cannot be read or is there under two names,
    a corpus is not complete, or a shipped excerpt is damaged.
    """
    text = TEXTS[name]
    if data_dir is not None and (found := _find(name, Path(data_dir))) is not None:
        if found.is_dir():
            return Dataset(name, "text", Corpus.open(found, splits=[split]).splits[split].text(), split=split)
        return Dataset(name, "text", _read(found), split="data_dir")
    if text.sha256 is not None:
        return Dataset(name, "text", _excerpt(text), split="excerpt")
    names = " or ".join(name + suffix for suffix in SUFFIXES)
    reason = f"no excerpt of {name} ({text.definition}) is shipped: put a file {names} into evaluation.data_dir"
    return Dataset(name, "text", np.empty(0, np.uint8), split=None, skipped=reason)


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


def _excerpt(text: Text) -> np.ndarray:
    file = resources.files("upscale.evaluation").joinpath("texts", f"{text.name}.xz")
    advice = "install the package again, or put your own file into evaluation.data_dir"
    try:
        content = lzma.decompress(file.read_bytes())
    except (OSError, lzma.LZMAError, EOFError) as error:
        raise EvaluationError(f"the shipped text {text.name}.xz cannot be read ({error}): {advice}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != text.sha256:
        raise EvaluationError(
            f"the shipped text {text.name}.xz has changed (SHA-256 {digest}, not {text.sha256}): {advice}"
        )
    return np.frombuffer(content, np.uint8)
