"""`upscale prepare text` against a list of documents, in every form that they come in, and its refusals."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from tests.corpora import inputs
from tests.corpora.small import request
from tests.reference import documents as reference
from upscale.cli.prepare import main
from upscale.corpora.documents import tables
from upscale.corpora.prepare import prepare
from upscale.corpora.shards.reading import Corpus
from upscale.errors import UserError

SHARE = 0.4


def written(number: int) -> bytes:
    """A document of some words; every tenth one is the first again."""
    random = np.random.default_rng(number if number % 10 else 0)
    return " ".join(random.choice(["größe", "wort", "ß", "x"], random.integers(1, 30))).encode()


DOCUMENTS = [written(number) for number in range(60)]


def made(to: Path, source: Path, read: bool = True, **asked) -> dict[str, bytes]:
    """The splits of a corpus that `upscale prepare text` makes; none where they are not to be read."""
    prepare(request("text", to, source, **{"held_out": SHARE, **asked}))
    if not read:
        return {}
    return {name: split.text().tobytes() for name, split in Corpus.open(to).splits.items()}


def expected(documents=DOCUMENTS, **changes) -> dict[str, bytes]:
    return reference.splits(documents, **{"held_out": SHARE, **changes})


def as_lines(field="text", documents=DOCUMENTS) -> bytes:
    rows = ({"id": number, field: text.decode()} for number, text in enumerate(documents))
    return b"\n".join(json.dumps(row).encode() for row in rows) + b"\n\n"


def as_folder(folder: Path) -> Path:
    for number, text in enumerate(DOCUMENTS):
        place = folder / f"{number // 20}" / f"{number:03}.txt"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(text)
    (folder / "0" / "empty.txt").touch()
    return folder


def as_tar(suffix=".txt", content=lambda text: text, documents=DOCUMENTS) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number, text in enumerate(documents):
            member = tarfile.TarInfo(f"{number:06}{suffix}")
            member.size = len(content(text))
            archive.addfile(member, io.BytesIO(content(text)))
    return buffer.getvalue()


def json_object(text: bytes) -> bytes:
    return json.dumps({"text": text.decode()}).encode()


FILES = {
    "a.jsonl": as_lines(),
    "a.jsonl.gz": gzip.compress(as_lines()),
    "a.ndjson.xz": lzma.compress(as_lines()),
    "a.jsonl.zst": inputs.PACKINGS[".zst"](as_lines()),
    "a.tar": as_tar(),
    "a.tar.gz": gzip.compress(as_tar()),
    "a.zip": inputs.zipped({f"{number:03}.txt": text for number, text in enumerate(DOCUMENTS)}),
    "json.tar": as_tar(".json", json_object),
}


@pytest.mark.parametrize("name", FILES)
def test_files_and_archives(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    assert made(tmp_path / "to", tmp_path / name) == expected()


def test_a_folder_of_texts(tmp_path):
    """Duplicates dropped or kept, any separator; the index tells how many documents there are."""
    folder = as_folder(tmp_path / "texts")
    assert made(tmp_path / "to", folder) == expected()
    assert Corpus.open(tmp_path / "to").description.provenance["documents"] == 55
    assert Corpus.open(tmp_path / "to").description.provenance["duplicates"] == 5
    kept = made(tmp_path / "kept", folder, duplicates="kept", separator="blank", held_out=0.5)
    assert kept == expected(unique=False, separator=b"\n\n", held_out=0.5)
    assert made(tmp_path / "none", folder, separator="none") == expected(separator=b"")


def test_a_folder_of_shards(tmp_path):
    """Webdataset's, packed in two ways, beside what tells of them; with other members, those that are asked for."""
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "README.md").write_text("a data set")
    with webdataset.TarWriter(str(folder / "000.tar")) as writer:
        for number, text in enumerate(DOCUMENTS[:30]):
            writer.write({"__key__": f"{number:04}", "txt": text, "cls": number})
    (folder / "001.tar.zst").write_bytes(inputs.PACKINGS[".zst"](as_tar(documents=DOCUMENTS[30:])))
    assert made(tmp_path / "to", folder, only="*.txt") == expected()


def test_a_text_is_cut_into_documents(tmp_path):
    """At every line, and at blank lines; ends of line around a document are not part of it."""
    (tmp_path / "lines").write_bytes(b"\n".join(DOCUMENTS))
    assert made(tmp_path / "line", tmp_path / "lines", documents="line") == expected()
    pairs = [DOCUMENTS[number] + b"\n" + DOCUMENTS[number + 1] for number in range(0, 60, 2)]
    (tmp_path / "pairs").write_bytes(b"\r\n \n\n".join(pairs) + b"\n")
    assert made(tmp_path / "blank", tmp_path / "pairs", documents="blank") == expected(pairs)


def test_one_document_is_cut_in_proportion(tmp_path):
    content = b" ".join(DOCUMENTS)
    (tmp_path / "book.txt").write_bytes(content)
    splits = made(tmp_path / "to", tmp_path / "book.txt", separator="none")
    assert b"".join(splits.values()) == content
    assert [len(split) for split in splits.values()][:2] == [len(content) * 900 // 1000, len(content) * 50 // 1000]


def test_a_documents_split_never_changes(tmp_path):
    """With more documents, in another order, none moves; a larger share moves documents out of train only."""
    (tmp_path / "few.jsonl").write_bytes(as_lines(documents=DOCUMENTS[:40]))
    (tmp_path / "many.jsonl").write_bytes(as_lines(documents=DOCUMENTS[::-1]))
    few, many = (made(tmp_path / name, tmp_path / f"{name}.jsonl", held_out=0.5) for name in ("few", "many"))
    more = made(tmp_path / "more", tmp_path / "many.jsonl", held_out=0.7)
    parts = [{name: set(split.split(b"\0")[:-1]) for name, split in splits.items()} for splits in (few, many, more)]
    for name in ("train", "validation", "test"):
        assert parts[0][name] <= parts[1][name]
    assert parts[1]["validation"] <= parts[2]["validation"] and parts[1]["test"] <= parts[2]["test"]


def test_the_first_documents_are_taken(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(as_lines())
    splits = made(tmp_path / "to", tmp_path / "a.jsonl", take=900, duplicates="kept", separator="none")
    sizes = np.cumsum([len(text) for text in DOCUMENTS])
    count = int(np.searchsorted(sizes, 900)) + 1
    assert splits == expected(DOCUMENTS[:count], unique=False, separator=b"")


def test_long_documents_are_read_in_pieces(tmp_path):
    """Longer than a chunk, with characters that cross its end; one of them twice."""
    long = [("ß" * 700_000 + "x" * number).encode() for number in range(12)]
    folder = tmp_path / "long"
    folder.mkdir()
    for number, text in enumerate([*long, long[3]]):
        (folder / f"{number:02}.txt").write_bytes(b"x" + text)
    assert made(tmp_path / "to", folder, held_out=0.6) == expected([b"x" + text for text in long], held_out=0.6)


@pytest.fixture
def pyarrow():
    return pytest.importorskip("pyarrow", reason="needs pyarrow")


def table(pyarrow, field="text", documents=DOCUMENTS):
    """With a row whose text is null, which is no document."""
    texts = [*(text.decode() for text in documents), None]
    return pyarrow.table({"id": list(range(len(texts))), field: texts})


def test_a_folder_of_parquet(tmp_path, pyarrow):
    """As a data set lies on Hugging Face's hub: two tables of another field, in several row groups."""
    import pyarrow.parquet

    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text("a data set")
    for number, part in enumerate((DOCUMENTS[:25], DOCUMENTS[25:])):
        content = table(pyarrow, "content", part)
        pyarrow.parquet.write_table(content, folder / f"data/train-{number:05}.parquet", row_group_size=7)
    assert made(tmp_path / "to", folder, field="content") == expected()
    with pytest.raises(UserError, match="has no field 'text'; it has id, content. Give one with --field"):
        made(tmp_path / "x", folder)
    with pytest.raises(UserError, match="the field 'id' holds int64, not text"):
        made(tmp_path / "x", folder, field="id")
    pyarrow.parquet.write_table(table(pyarrow, "content").slice(0, 0), folder / "data/train-00002.parquet")
    with pytest.raises(UserError, match="train-00002.parquet holds no document"):
        made(tmp_path / "x", folder, field="content")
    (folder / "data/train-00002.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(UserError, match="train-00002.parquet is damaged or truncated"):
        made(tmp_path / "x", folder, field="content")
    assert not (tmp_path / "x").exists()


def test_a_data_set_saved_to_disk(tmp_path, pyarrow):
    """As datasets' `save_to_disk` leaves it: Arrow streams beside two files that tell of them; and an Arrow file."""
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "state.json").write_text("{}")
    (folder / "dataset_info.json").write_text("{}")
    content = table(pyarrow)
    shard = folder / "data-00000-of-00001.arrow"
    with pyarrow.OSFile(str(shard), "wb") as file, pyarrow.ipc.new_stream(file, content.schema) as writer:
        writer.write_table(content, max_chunksize=7)
    with (
        pyarrow.OSFile(str(tmp_path / "file.arrow"), "wb") as file,
        pyarrow.ipc.new_file(file, content.schema) as writer,
    ):
        writer.write_table(content, max_chunksize=7)
    assert made(tmp_path / "to", folder) == expected()
    assert made(tmp_path / "file", tmp_path / "file.arrow") == expected()
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(UserError, match="data-00000-of-00001.arrow is damaged or truncated"):
        made(tmp_path / "x", folder)


def test_without_pyarrow_the_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(
        UserError, match=r"a.parquet is a table \(parquet\), which the package pyarrow reads: pip install"
    ):
        made(tmp_path / "to", tmp_path / "a.parquet")


MISTAKES = {
    "another encoding": (
        {"a.txt": b"abc", "b.txt": "größe".encode("latin1")},
        "b.txt is not UTF-8: at byte 2 stands 0xf6",
    ),
    "half a character": ({"a.txt": b"abc", "b.txt": "größe".encode()[:3]}, "b.txt is not UTF-8: at byte 2 stands 0xc3"),
    "UTF-16": ({"a.txt": "größe".encode("utf-16")}, "a.txt is UTF-16 text"),
    "a zero byte": ({"a.txt": b"a", "b.txt": b"b\0"}, "b.txt holds a zero byte, which separates documents"),
    "no field": (
        {"a.jsonl": b'{"text": "a"}\n{"txt": "b"}\n'},
        "line 2 has no text in a field 'text': its fields are txt",
    ),
    "a number": ({"a.jsonl": b'{"text": 3}\n'}, "line 1 has no text in a field 'text'"),
    "a list": ({"a.jsonl": b"[3]\n"}, "line 1 has no text in a field 'text': it is no object"),
    "no JSON": ({"a.jsonl": b'{"text": "a"}\n{"text": \n'}, "line 2 is not JSON"),
    "half a surrogate": ({"a.jsonl": b'{"text": "\\ud800"}\n'}, "holds half of a character"),
    "an empty shard": ({"a.tar": as_tar(), "b.tar": as_tar(documents=[])}, "b.tar holds no document: leave it out"),
    "an empty file of lines": ({"a.jsonl": as_lines(), "b.jsonl": b""}, "b.jsonl is empty: leave it out"),
    "lines without one": ({"a.jsonl": as_lines(), "b.jsonl": b"\n"}, "b.jsonl holds no document"),
    "a mixture": ({"a.jsonl": as_lines(), "b.txt": b"b"}, "as b.txt: choose with --only, such as --only '.jsonl'"),
    "nothing": ({"a.txt": b""}, "holds no document"),
    "few documents": ({"a.txt": b"a", "b.txt": b"b"}, "has 2 documents, too few for three splits by hash"),
    "packed in an archive": ({"a.tar": as_tar(content=gzip.compress)}, "is packed twice: inside is gzip"),
    "a page": ({"a.txt": b"<html>error 404</html>"}, "is an HTML page"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_and_leave_nothing(tmp_path, mistake):
    files, message = MISTAKES[mistake]
    (tmp_path / "from").mkdir()
    for name, content in files.items():
        (tmp_path / "from" / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        made(tmp_path / "to", tmp_path / "from")
    assert message.replace("'.jsonl'", "'*.jsonl'") in str(raised.value)
    assert not (tmp_path / "to").exists()


def test_other_encodings_on_request(tmp_path):
    (tmp_path / "a.txt").write_bytes("größe ".encode("latin1") * 100)
    splits = made(tmp_path / "to", tmp_path / "a.txt", encoding="any", separator="none")
    assert b"".join(splits.values()) == (tmp_path / "a.txt").read_bytes()


def test_a_line_without_an_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "LINE_BYTES", 1000)
    (tmp_path / "a.jsonl").write_bytes(as_lines() + b"x" * 2000)
    with pytest.raises(UserError, match="a.jsonl, line 62 is longer than 1,000 bytes"):
        made(tmp_path / "to", tmp_path / "a.jsonl")


def test_a_prepared_corpus_is_no_input(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(as_lines())
    made(tmp_path / "to", tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="is a prepared corpus already"):
        made(tmp_path / "again", tmp_path / "to")


def test_the_command(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_bytes(as_lines("body"))
    given = ["--from", str(tmp_path / "a.jsonl"), "--to", str(tmp_path / "to")]
    assert main(["text", *given, "--field", "body", "--held-out", "0.4", "--separator", "blank"]) == 0
    assert "text, " in capsys.readouterr().out
    splits = {name: split.text().tobytes() for name, split in Corpus.open(tmp_path / "to").splits.items()}
    assert splits == expected(separator=b"\n\n")
    with pytest.raises(UserError, match="--held-out 2.0: input should be less than 1"):
        main(["text", *given, "--held-out", "2"])
    with pytest.raises(UserError, match="--field body is for text only, not for wp"):
        main(["wp", *given, "--field", "body"])
    with pytest.raises(UserError, match="text has no public address: give --from"):
        main(["text", "--to", str(tmp_path / "x")])
