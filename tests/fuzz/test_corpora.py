"""Archives, packed files and corpus indexes: the bytes that are in them, or one clear error; nothing is written."""

from __future__ import annotations

import functools
import io
import json
import lzma
import tarfile
import zipfile
from array import array
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.corpora import inputs
from tests.corpora.small import corpus, text
from tests.fuzz import hostile
from upscale import files
from upscale.corpora.archives import decompression
from upscale.corpora.archives.inputs import Entry, entries, only_compressed_file, single_text
from upscale.corpora.documents.reading import Reader
from upscale.corpora.documents.spooling import spool_documents
from upscale.corpora.recipes import RECIPES
from upscale.corpora.recipes.german import book_body
from upscale.corpora.shards import index
from upscale.corpora.shards.reading import Windows
from upscale.corpora.work.spooling import spool_files
from upscale.errors import UserError

FILES = {
    "linux/a.c": b"int a;\n",
    "linux/b/c.h": text(900),
    "linux/größe.c": b"",
    "linux/" + "long/" * 30 + "d.c": b"d",
}
READ_BYTES = 1 << 24


@pytest.fixture(autouse=True)
def small_allowance(monkeypatch):
    """So that a hole of a GiB is refused at once instead of being written first."""
    monkeypatch.setattr(decompression, "ALWAYS_ALLOWED_BYTES", 1 << 20)


def read(path: Path) -> int:
    """The bytes of all files, as `upscale prepare` reads them, up to READ_BYTES."""
    total = 0
    for entry in entries(path, lambda _: None):
        while isinstance(entry, Entry) and total < READ_BYTES and (block := entry.stream.read(1 << 20)):
            total += len(block)
    return total


def sparse() -> bytes:
    """A member in each of GNU tar's sparse forms."""
    found = b""
    for headers, content in (
        (
            {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "99"},
            b"1\n90\n9\n".ljust(512, b"\0"),
        ),
        ({"GNU.sparse.map": "90,9", "GNU.sparse.size": "99"}, b""),
    ):
        header = tarfile.TarInfo("s.c")
        header.pax_headers = {**headers, "GNU.sparse.name": "s.c"}
        header.size = len(content) + 9
        found += header.tobuf(tarfile.PAX_FORMAT) + content + b"123456789".ljust(512, b"\0")
    old = tarfile.TarInfo("o.c")
    old.type, old.size = tarfile.GNUTYPE_SPARSE, 9
    block = bytearray(old.tobuf(tarfile.GNU_FORMAT))
    block[386:410], block[483:495] = b"%011o\0%011o\0" % (90, 9), b"%011o\0" % 99
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 256)
    return found + bytes(block) + b"123456789".ljust(512, b"\0")


def tar_with_everything(form: int) -> bytes:
    extra = [
        inputs.member("linux/l.c", tarfile.LNKTYPE, "linux/a.c"),
        inputs.member("linux/s.c", tarfile.SYMTYPE, "a.c"),
    ]
    return sparse() + inputs.tar(FILES, extra=extra, format=form)


TARS = {form: tar_with_everything(form) for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)}


def test_the_undamaged_tars_are_read(tmp_path):
    for form, content in TARS.items():
        (tmp_path / "x.tar").write_bytes(content)
        assert read(tmp_path / "x.tar") == 3 * 99 + sum(map(len, FILES.values())), form


@st.composite
def tars(draw) -> bytes:
    """Damaged, most often with the checksum of the damaged header put right, so that its fields are believed."""
    content = bytearray(TARS[draw(st.sampled_from(sorted(TARS)))])
    for _ in range(draw(st.integers(1, 3))):
        block = 512 * draw(st.integers(0, len(content) // 512 - 1))
        place, size = draw(st.sampled_from([(0, 100), (100, 8), (124, 12), (156, 1), (157, 100), (257, 8), (345, 155)]))
        fill = st.binary(max_size=size) | st.sampled_from(
            [
                b"77777777777",
                b"\x80" + bytes(6) + b"\xff" * 5,
                b"\xff" * 12,
                b"\xff" * 11 + b"\0",
                b"../../x",
                b"/etc/x",
            ]
        )
        value = draw(fill | st.sampled_from([b"L", b"K", b"x", b"g", b"S", b"1", b"2", b"5", b"M", b"D", b"V"]))[:size]
        content[block + place : block + place + len(value)] = value
        if draw(st.integers(0, 4)):
            header = content[block : block + 512]
            header[148:156] = b" " * 8
            content[block + 148 : block + 156] = b"%06o\0 " % sum(header)
    return bytes(content)


@given(content=tars() | st.sampled_from(sorted(TARS.values())).flatmap(hostile.damaged))
def test_any_tar(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "hostile"
    path.write_bytes(content)
    hostile.ends_well(read, path)
    hostile.ends_well(only_compressed_file, path)


def zips() -> list[bytes]:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
        link = zipfile.ZipInfo("linux/s.c")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "a.c")
        with archive.open("big.c", "w", force_zip64=True) as file:
            file.write(text(500))
        archive.comment = b"comment"
    return [whole.getvalue(), inputs.zipped({"a": b"text"})]


@given(content=st.sampled_from(zips()).flatmap(hostile.damaged))
def test_any_zip(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "hostile"
    path.write_bytes(content)
    hostile.ends_well(read, path)


PACKED = [pack(b"begin" + text(3000)) for form, pack in inputs.PACKINGS.items() if form]
PACKED += [lzma.compress(b"text" * 99, lzma.FORMAT_ALONE)]


@given(content=st.sampled_from(PACKED).flatmap(hostile.damaged) | st.binary(max_size=700))
def test_any_packed_text(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "hostile"
    path.write_bytes(content)
    hostile.ends_well(lambda: [stream.read(READ_BYTES) for stream in single_text(path, lambda _: None)])


LINES = b'{"text": "gr\\u00f6sse", "id": 1}\n{"text": ""}\n\n{"id": [2], "text": "x"}\n'


@given(content=hostile.damaged(LINES) | tars(), name=st.sampled_from(["a.jsonl", "a.tar", "a.json.tar", "a"]))
def test_any_documents(tmp_path_factory, content, name):
    """JSON lines, archives and texts of any content, as documents with every check."""
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    hostile.ends_well(lambda: spooled(path))


@functools.cache
def tables() -> list[bytes]:
    """A Parquet table, an Arrow file and an Arrow stream."""
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    from pyarrow import parquet

    content = pyarrow.table({"id": [1, 2, 3], "text": ["some text", None, "more of it"]})
    sinks = [pyarrow.BufferOutputStream() for _ in range(3)]
    parquet.write_table(content, sinks[0])
    for sink, opened in zip(sinks[1:], (pyarrow.ipc.new_file, pyarrow.ipc.new_stream), strict=True):
        with opened(sink, content.schema) as writer:
            writer.write_table(content)
    return [sink.getvalue().to_pybytes() for sink in sinks]


@given(data=st.data())
def test_any_table(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "hostile.arrow"
    path.write_bytes(data.draw(st.sampled_from(tables()).flatmap(hostile.damaged)))
    hostile.ends_well(lambda: spooled(path))


@pytest.mark.parametrize("kind", [1, 2], ids=["file", "stream"])
def test_a_table_whose_texts_end_beyond_it(tmp_path, kind):
    """Found by fuzzing: Arrow believes the places of texts in a table, and aborted the process."""
    places, beyond = (np.array([0, 9, 9, end], "<i4").tobytes() for end in (19, 1 << 30))
    content = tables()[kind]
    assert content.count(places) == 1
    (tmp_path / "a.arrow").write_bytes(content.replace(places, beyond))
    with pytest.raises(UserError, match="a.arrow"):
        spooled(tmp_path / "a.arrow")


def spooled(path):
    documents = Reader().documents(path, lambda count: None)
    return spool_documents(
        documents, path.with_name("spool"), separator=b"\0", unique=True, held_out=0.5, take=None, utf8=True
    )


@given(content=tars())
def test_any_tar_as_a_kernel(tmp_path_factory, content):
    """Names, links and repeated members through the spool: sorted, joined, and no file but the spool is made."""
    folder = tmp_path_factory.getbasetemp() / "spooled"
    folder.mkdir(exist_ok=True)
    (folder / "hostile").write_bytes(content)
    found = hostile.ends_well(
        lambda: spool_files(
            entries(folder / "hostile", lambda _: None, RECIPES["linux"]().wants),
            folder / "spool",
            collapsed=True,
            take=50_000,
            in_order=False,
            processes=1,
        )
    )
    assert found is None or len(found[0].read(0, 50_000)) == len(found[0])
    assert {path.name for path in folder.iterdir()} <= {"hostile", "spool"}


BOOK = b"Title\r\n*** START OF THE PROJECT GUTENBERG EBOOK X ***\r\nProduced by Y\r\n\r\nText\r\n" + (
    b"*** END OF THE PROJECT GUTENBERG EBOOK X ***\r\nLicence"
)


@given(content=hostile.damaged(BOOK))
def test_any_book(content):
    hostile.ends_well(book_body, content, Path("book"))


def test_a_book_of_white_space_ends_in_time(tmp_path):
    """Two MiB of it before the end mark, for which a search that goes back would take days."""
    body = b"x" + b" \n" * (1 << 20)
    assert book_body(BOOK.replace(b"Text", body), tmp_path) == b"x\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("corpus")
    corpus(path, text(1541), {"train": 1234, "validation": 300, "test": 7})
    return path


@given(data=st.data())
def test_any_index_with_a_right_checksum(folder, data):
    tree = json.loads((folder / index.INDEX).read_bytes())
    (folder / "kept").write_text(json.dumps(tree))
    del tree["checksum"]
    changed = data.draw(hostile.changed(tree))
    changed = changed if isinstance(changed, dict) else {"tree": changed}
    try:
        (folder / index.INDEX).write_text(json.dumps({**changed, "checksum": files._checksum(changed, index.HASH)}))
        hostile.ends_well(lambda: Windows.open([folder], context=16, seed=0).rows(torch.arange(50)))
    finally:
        (folder / "kept").replace(folder / index.INDEX)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tree: tree["splits"]["train"][0].update(file="../x.tar"),
            "'../x.tar' in train is not the name",
        ),
        (lambda tree: tree["splits"]["train"][0].update(file="/etc/passwd"), "is not the name of a file in its folder"),
        (lambda tree: tree["splits"]["train"][1].update(text_bytes=301), "holds 301 bytes of text"),
        (lambda tree: tree["splits"]["train"][-1].update(text_bytes=300), "has 2048 bytes for 300 of text"),
        (lambda tree: tree.update(piece_bytes=0), "piece_bytes 0"),
        (lambda tree: tree.update(piece_bytes=50), "holds 300 bytes of text"),
        (lambda tree: tree["splits"]["test"][0].update(bytes="1"), "not of its form: splits.test.0.bytes"),
        (lambda tree: tree.pop("licence"), "not of its form: licence"),
    ],
)
def test_what_an_index_may_not_say(tmp_path, change, message):
    corpus(tmp_path, text(1541), {"train": 1234, "validation": 300, "test": 7})
    tree = json.loads((tmp_path / index.INDEX).read_bytes())
    del tree["checksum"]
    change(tree)
    (tmp_path / index.INDEX).write_text(json.dumps({**tree, "checksum": files._checksum(tree, index.HASH)}))
    with pytest.raises(index.UserError, match=message):
        Windows.open([tmp_path], context=16, seed=0)


def test_an_index_that_is_too_deep(tmp_path):
    (tmp_path / index.INDEX).write_text("[" * 100_000)
    with pytest.raises(index.UserError, match="nested too deeply"):
        index.read(tmp_path)


def test_the_size_of_a_shard_is_that_of_its_tar():
    """Against tarfile, for texts that fill pieces, blocks and shards or do not."""
    for size in (1, 99, 100, 101, 512, 1024, 1100):
        for piece in (100, 512, 600):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
                for start in range(0, size, piece):
                    header = tarfile.TarInfo("x")
                    header.size = min(piece, size - start)
                    archive.addfile(header, io.BytesIO(bytes(header.size)))
                written = archive.offset + 1024
            assert index.tar_bytes(size, piece) == written, array("q", [size, piece])
