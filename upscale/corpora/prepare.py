"""`upscale prepare`: one corpus from what a user has, or from its public address, to shards and an index."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from upscale.console import command
from upscale.console.progress import Progress
from upscale.corpora import download, index, inputs, parallel, spooling
from upscale.corpora.catalogue import CORPORA, Known
from upscale.corpora.unpacking import cannot_read
from upscale.corpora.writing import Spool, write_corpus
from upscale.errors import UserError

C_SUFFIXES = (b".c", b".h")
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Request:
    """What `upscale prepare` was asked."""

    corpus: str
    to: Path
    source: str | None = None
    """A path or an http(s) address; None: the corpus's public address."""
    take: int | None = None
    """Bytes of text to take; None: all."""
    collapsed: bool = True
    files: str = "c"
    """linux only: `c` takes *.c and *.h, `all` every file."""
    processes: int = 1
    checksum: bool = True

    def options(self) -> dict:
        """What changes the text."""
        of_linux = {"whitespace": "collapsed" if self.collapsed else "kept", "files": self.files}
        return {"bytes": self.take, **(of_linux if self.corpus == "linux" else {})}


def prepare(request: Request) -> index.Index:
    """Write the corpus, or find it already there; raises UserError and then leaves nothing that looks complete.

    What an earlier, killed call left is used (a download) or made again.
    """
    try:
        if (request.to / index.INDEX).exists():
            return _already_there(request)
        if request.to.is_dir() and any(request.to.iterdir()) and not (request.to / index.WORK).is_dir():
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
    work = to / index.WORK
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another `upscale prepare` is writing to {to}: wait for it, or choose another --to"
            ) from None
        if (to / index.INDEX).exists():  # between our first look and the lock
            raise UserError(f"another `upscale prepare` has just completed {to}: run this one again to check it")
        _remove_attempt(to)
        try:
            yield work
        except BaseException:
            _remove_attempt(to)
            if not any(path.name != "lock" for path in work.iterdir()):
                _remove_if_empty(to, work)
            raise
        shutil.rmtree(work)


def _remove_attempt(to: Path) -> None:
    """Deletes what an unfinished attempt wrote, but for downloads."""
    (to / index.WORK / "spool").unlink(missing_ok=True)
    of_splits = [form for split in index.SPLITS for form in (f"{split}-*.tar", f".{split}-*.tar.*.tmp")]
    for form in [*of_splits, f".{index.INDEX}.*.tmp"]:
        for path in to.glob(form):
            path.unlink()


def _remove_if_empty(to: Path, work: Path) -> None:
    with contextlib.suppress(OSError):
        shutil.rmtree(work)
        to.rmdir()


def _already_there(request: Request) -> index.Index:
    """The index of a complete corpus, if it is what was asked for and whole; raises UserError otherwise."""
    found = index.read(request.to)
    given = request.source and _name(request.source)
    same = (found.corpus, found.options) == (request.corpus, request.options())
    if not same or given not in (None, found.provenance["input"]):
        raise UserError(
            f"{request.to} already holds {found.corpus} with {found.options}, made from {found.provenance['input']}. "
            "Choose another --to, or delete it."
        )
    shards = [shard for shards in found.splits.values() for shard in shards]
    if problems := index.problems(request.to, shards, hashes=True):
        raise UserError(f"{'; '.join(problems)}. Delete {request.to} and prepare it again.")
    shutil.rmtree(request.to / index.WORK, ignore_errors=True)  # of a call that was killed right at its end
    return found


def _prepare(request: Request, work: Path) -> index.Index:
    origin = CORPORA[request.corpus]
    source = request.source or origin.address
    address = source if download.is_address(source) else None
    path = _fetched(request, address, work) if address else _given(request)
    known = origin.expected(_name(source), address) if request.checksum else None
    try:
        provenance = {"input": _name(source), "address": address, **_described(path)}
        if known and not known.of_text:
            _check(path, known, provenance["sha256"])
        spool, files = _spool(request, path, work / "spool")
        if known and known.of_text and request.take is None:
            _check(path, known, _text_digest(spool, known.algorithm))
            provenance["text_" + known.algorithm] = known.digest
        if files is not None:
            provenance["files"] = files
        sizes = origin.sizes(len(spool))
        if not all(sizes.values()):
            raise UserError(f"{path} gives {len(spool):,} bytes of text, too few for three splits: {sizes}")
        about = {"corpus": request.corpus, "options": request.options(), "licence": origin.licence}
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
        f"Without a network here, download it elsewhere and pass the file: `upscale prepare {request.corpus} --to "
        f"{request.to} --from FILE`. FILE may be {CORPORA[request.corpus].also}.",
    )


def _given(request: Request) -> Path:
    """The user's file or folder; of a folder that should hold one text, that text."""
    path = Path(request.source)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode) and request.corpus != "linux":
            files = sorted(each for each in path.iterdir() if each.is_file() and not each.name.startswith("."))
            if len(files) != 1:
                raise UserError(f"--from {path} is a folder with {len(files)} files; pass the one that is the text")
            return files[0]
    except OSError as error:
        allowed = f"It may be {CORPORA[request.corpus].also}, or an http(s) address."
        raise UserError(f"--from {cannot_read(path, error)}. {allowed}") from None
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise UserError(f"--from {path} is neither a file nor a folder")
    return path


def _described(path: Path) -> dict:
    if path.is_dir():
        return {"bytes": None, "sha256": None}
    try:
        return {"bytes": path.stat().st_size, "sha256": index.file_sha256(path)}
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


def _spool(request: Request, path: Path, file: Path) -> tuple[Spool, int | None]:
    """The text of the request, and of how many files it is (None: of one)."""
    total = None if path.is_dir() else path.stat().st_size
    with Progress(f"reading {path.name}", total) as progress:
        if request.corpus == "linux":
            return _spool_linux(request, path, file, progress)
        if request.corpus == "german":
            for stream in inputs.single_text(path, progress):
                content = stream.read(spooling.BOOK_BYTES)
                if stream.read(1):
                    raise UserError(f"{path} is larger than {spooling.BOOK_BYTES >> 20} MiB: it is not the book")
            return spooling.spool_chunks([spooling.book_body(content, path)], file, request.take), None
        chunks = (
            chunk
            for stream in inputs.single_text(path, progress)
            for chunk in iter(lambda stream=stream: stream.read(CHUNK_BYTES), b"")
        )
        return spooling.spool_chunks(chunks, file, request.take), None


def _spool_linux(request: Request, path: Path, file: Path, progress: Progress) -> tuple[Spool, int]:
    def wanted(name: bytes) -> bool:
        return request.files == "all" or name.endswith(C_SUFFIXES)

    if not path.is_dir() and not inputs.is_archive(path):
        raise UserError(f"{path} is neither a folder nor an archive; allowed: {CORPORA['linux'].also}")
    spool, files = spooling.spool_files(
        inputs.entries(path, progress, wanted),
        file,
        collapsed=request.collapsed,
        take=request.take,
        in_order=path.is_dir(),
        processes=request.processes,
    )
    if len(spool) == 0:
        kind = "C source (*.c, *.h; --files all takes every file)" if request.files == "c" else "file with a text"
        raise UserError(f"{path} has no {kind}; allowed: {CORPORA['linux'].also}")
    return spool, files


def main(arguments: list[str]) -> int:
    parser = command.parser("prepare", "Turn a text into a corpus: webdataset shards of three splits, and an index.")
    parser.add_argument(
        "corpus", choices=CORPORA, help="; ".join(f"{name}: {o.definition}" for name, o in CORPORA.items())
    )
    parser.add_argument("--to", required=True, type=Path, metavar="DIR", help="folder to write, new or empty")
    parser.add_argument(
        "--from",
        dest="source",
        metavar="FILE|DIR|ARCHIVE|URL",
        help="; ".join(f"{name}: {o.also}; default {o.address}" for name, o in CORPORA.items()),
    )
    parser.add_argument(
        "--bytes",
        type=_bytes,
        metavar="N",
        help="take the first N bytes of text (25e6), or `all`; default: all, linux 200e6",
    )
    parser.add_argument(
        "--whitespace", choices=("collapsed", "kept"), help="linux: every run of it one space (default), or as it is"
    )
    parser.add_argument("--files", choices=("c", "all"), help="linux: *.c and *.h (default), or every file")
    parser.add_argument(
        "--processes", type=int, default=parallel.usable_processes(), metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--no-checksum", action="store_true", help="accept another content under a known name or address"
    )
    given = parser.parse_args(arguments)
    for option in ("whitespace", "files"):
        if getattr(given, option) is not None and given.corpus != "linux":
            raise UserError(f"--{option} {getattr(given, option)} is for linux only, not for {given.corpus}")
    if given.processes < 1:
        raise UserError(f"--processes {given.processes}: allowed: 1 or more")
    take = {None: CORPORA[given.corpus].take, "all": None}.get(given.bytes, given.bytes)
    request = Request(
        corpus=given.corpus,
        to=given.to,
        source=given.source,
        take=take,
        collapsed=given.whitespace != "kept",
        files=given.files or "c",
        processes=given.processes,
        checksum=not given.no_checksum,
    )
    print(_summary(request.to, prepare(request)))
    return 0


def _bytes(text: str) -> int | str:
    if text == "all":
        return text
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 1 <= number < 1 << 63 or number != int(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of bytes, such as 25e6, or `all`")
    return int(number)


def _summary(folder: Path, written: index.Index) -> str:
    sizes = {split: written.split_bytes(split) for split in written.splits}
    lines = [f"{folder}: {written.corpus}, {sum(sizes.values()):,} bytes from {written.provenance['input']}"]
    lines += [f"  {split:11}{size:>16,} bytes {len(written.splits[split]):>6} shards" for split, size in sizes.items()]
    return "\n".join([*lines, f"  licence: {written.licence}"])
