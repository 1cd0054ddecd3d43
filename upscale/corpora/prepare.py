"""Making a corpus: a locked folder, the input or its download, checksums, the text, shards and the index."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from upscale.console.progress import Progress
from upscale.corpora.archives.decompression import cannot_read
from upscale.corpora.recipes import Known, Recipe
from upscale.corpora.shards import index
from upscale.corpora.shards.writing import write_corpus
from upscale.corpora.work import download
from upscale.corpora.work.locking import locked
from upscale.corpora.work.spooling import CHUNK_BYTES, Spool
from upscale.errors import UserError
from upscale.files import file_digest


@dataclass(frozen=True)
class Request:
    """What `upscale prepare` was asked."""

    recipe: Recipe
    to: Path
    source: str | None = None
    """A path or an http(s) address; None: the corpus's public address."""
    processes: int = 1
    checksum: bool = True


def prepare(request: Request) -> index.Index:
    """The index of the corpus, written or already there; raises UserError and then leaves nothing that looks complete.

    What an earlier, killed call left is used (a download) or made again.
    """
    try:
        if (request.to / index.INDEX).exists():
            return _already_there(request)
        if request.to.is_dir() and any(request.to.iterdir()) and not (request.to / index.WORK["prepare"]).is_dir():
            raise UserError(f"{request.to} is not empty; allowed: a new or empty folder for --to")
        with _working_folder(request.to) as work:
            return _prepare(request, work)
    except OSError as error:
        raise UserError(
            f"cannot write the corpus to {request.to}: {error.strerror or error}. It needs the right to write there "
            "and room for twice its text; choose another --to."
        ) from None


@contextmanager
def _working_folder(to: Path) -> Iterator[Path]:
    """A locked folder in `to`, gone at the end; on a failure shards and spool go too, and downloads stay."""
    with locked(to, "prepare") as work:
        _remove_attempt(to)
        try:
            yield work
        except BaseException:
            _remove_attempt(to)
            if not any(path.name != "lock" for path in work.iterdir()):
                with contextlib.suppress(OSError):  # the folder is not empty
                    shutil.rmtree(work)
                    to.rmdir()
            raise
        shutil.rmtree(work)


def _remove_attempt(to: Path) -> None:
    """Deletes what an unfinished attempt wrote, but for downloads."""
    for name in ("spool", "tokens"):
        (to / index.WORK["prepare"] / name).unlink(missing_ok=True)
    of_splits = [form for split in index.SPLITS for form in (f"{split}-*.tar", f".{split}-*.tar.*.tmp")]
    for form in [*of_splits, f".{index.INDEX}.*.tmp"]:
        for path in to.glob(form):
            path.unlink()


def _already_there(request: Request) -> index.Index:
    """The index of a complete corpus, if it is what was asked for and whole; raises UserError otherwise."""
    found = index.read(request.to)
    given = request.source and _name(request.source)
    same = (found.corpus, found.options) == (request.recipe.kind, request.recipe.options())
    made_from = found.provenance.get("input")
    if not same or given not in (None, made_from):
        raise UserError(
            f"{request.to} already holds {found.corpus} with {found.options}, made from {made_from}. "
            "Choose another --to, or delete it."
        )
    shards = [shard for shards in found.splits.values() for shard in shards]
    if problems := index.problems(request.to, shards, hashes=True):
        raise UserError(f"{'; '.join(problems)}. Delete {request.to} and prepare it again.")
    shutil.rmtree(request.to / index.WORK["prepare"], ignore_errors=True)  # of a call that was killed right at its end
    return found


def _prepare(request: Request, work: Path) -> index.Index:
    recipe = request.recipe
    source = request.source or recipe.address
    if source is None:
        raise UserError(f"{recipe.kind} has no public address: give --from, {recipe.accepts}, or an http(s) address")
    address = source if download.is_address(source) else None
    path = _fetched(request, address, work) if address else _given(Path(source), recipe)
    known = recipe.expected(_name(source), address) if request.checksum else None
    try:
        provenance = {"input": _name(source), "address": address, **_described(path)}
        if known and not known.of_text:
            _check(path, known, provenance["sha256"])
        with Progress(f"reading {path.name}", None if path.is_dir() else path.stat().st_size) as progress:
            spool, files = recipe.spool(path, work / "spool", progress, request.processes)
        if known and known.of_text and recipe.take is None:
            _check(path, known, _text_digest(spool, known.algorithm))
            provenance["text_" + known.algorithm] = known.digest
        if files is not None:
            provenance["files"] = files
        provenance |= spool.about
        sizes = spool.splits or recipe.sizes(len(spool))
        if not all(sizes.values()):
            raise UserError(f"{path} gives {len(spool):,} bytes of text, too few for three splits: {sizes}")
        about = {"corpus": recipe.kind, "options": recipe.options(), "licence": recipe.licence, **spool.form}
        with Progress(f"writing {request.to}", len(spool)) as progress:
            return write_corpus(
                spool,
                sizes,
                request.to,
                about={**about, "provenance": provenance},
                processes=request.processes,
                progress=progress,
            )
    except UserError:
        if address:  # what was downloaded is not what it should be; keeping it would repeat the error for ever
            path.unlink(missing_ok=True)
        raise


def _name(source: str) -> str:
    return download.name_of(source) if download.is_address(source) else Path(source).resolve().name


def _fetched(request: Request, address: str, work: Path) -> Path:
    return download.fetch(
        address,
        work,
        f"Without a network here, download it elsewhere and pass the file: `upscale prepare {request.recipe.kind} --to "
        f"{request.to} --from FILE`. FILE may be {request.recipe.accepts}.",
    )


def _given(path: Path, recipe: Recipe) -> Path:
    """The user's file or folder; of a folder that should hold one text, that text."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode) and recipe.of_one_file:
            files = sorted(each for each in path.iterdir() if each.is_file() and not each.name.startswith("."))
            if len(files) != 1:
                raise UserError(f"--from {path} is a folder with {len(files)} files; pass the one that is the text")
            return files[0]
    except OSError as error:
        allowed = f"It may be {recipe.accepts}, or an http(s) address."
        raise UserError(f"--from {cannot_read(path, error)}. {allowed}") from None
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise UserError(f"--from {path} is neither a file nor a folder")
    return path


def _described(path: Path) -> dict:
    if path.is_dir():
        return {"bytes": None, "sha256": None}
    try:
        return {"bytes": path.stat().st_size, "sha256": file_digest(path, "sha256")}
    except OSError as error:
        raise cannot_read(path, error) from None


def _check(path: Path, known: Known, digest: str) -> None:
    if digest != known.digest:
        raise UserError(
            f"{path} is not what its name says: {known.algorithm} {digest} {'of its text ' * known.of_text}instead of "
            f"{known.digest}. Download it again, or pass --no-checksum if it should be another text."
        )


def _text_digest(spool: Spool, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    for start in range(0, len(spool), CHUNK_BYTES):
        digest.update(spool.read(start, CHUNK_BYTES))
    return digest.hexdigest()
