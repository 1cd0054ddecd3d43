"""Prepared corpora against the slow reference, read back with tarfile and webdataset, over packings and processes."""

from __future__ import annotations

import bz2
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import webdataset

from tests.corpora import inputs
from tests.corpora.small import request, text
from tests.reference import corpora as reference
from upscale.cli.prepare import main
from upscale.corpora.archives.decompression import zstd
from upscale.corpora.prepare import prepare
from upscale.corpora.recipes import RECIPES
from upscale.corpora.recipes.german import book_body
from upscale.corpora.shards import index, writing
from upscale.corpora.shards.reading import Corpus
from upscale.corpora.work import spooling
from upscale.errors import UserError

ABOUT = {"corpus": "wp", "options": {}, "licence": "", "provenance": {}}
COMMAND = [sys.executable, "-c", "from upscale.cli import main; main()", "prepare"]


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks and batches so small that every file is cut many times."""
    monkeypatch.setattr(spooling, "CHUNK_BYTES", 7)
    monkeypatch.setattr(spooling, "BATCH_BYTES", 50)


def made(to: Path, corpus: str, source: Path, **changes) -> dict[str, bytes]:
    """The splits' bytes after preparing."""
    prepare(request(corpus, to, str(source), **changes))
    return {name: split.text().tobytes() for name, split in Corpus.open(to).splits.items()}


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def proportional(corpus: str, content: bytes) -> dict[str, bytes]:
    origin, total = RECIPES[corpus], len(content)
    return reference.splits(content, total * origin.train // origin.total, total * origin.validation // origin.total)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"whitespace": "kept"},
        {"files": "all"},
        {"take": 4000},
        {"take": 4000, "whitespace": "kept"},
        {"take": 10**6},
    ],
    ids=str,
)
def test_linux_is_the_reference(tmp_path, small_chunks, options):
    """Against joining and collapsing in memory, from a folder; sorted by folder, whitespace across files included."""
    tree = inputs.write_tree(tmp_path / "tree")
    expected = reference.linux(
        inputs.KERNEL,
        collapsed=options.get("whitespace") != "kept",
        every=options.get("files") == "all",
        take=options.get("take"),
    )
    assert made(tmp_path / "corpus", "linux", tree, **options) == proportional("linux", expected)


@pytest.mark.parametrize("packing", inputs.PACKINGS)
def test_a_tar_gives_the_bytes_of_its_tree(tmp_path, small_chunks, packing):
    """Against the folder itself: members in random order, two tar formats, a link inside, packed or not."""
    made(tmp_path / "of tree", "linux", inputs.write_tree(tmp_path / "tree"))
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        archive = tmp_path / f"kernel{packing}"
        archive.write_bytes(inputs.PACKINGS[packing](inputs.tar(format=form)))
        made(tmp_path / f"of tar {form}", "linux", archive)
        assert shards(tmp_path / f"of tar {form}") == shards(tmp_path / "of tree") != {}


def test_zips_links_and_repeated_members(tmp_path, small_chunks):
    """A zip gives the tree's bytes; a hard link stands for its file's content and the later of two members counts."""
    made(tmp_path / "of tree", "linux", inputs.write_tree(tmp_path / "tree"))
    (tmp_path / "kernel.zip").write_bytes(inputs.zipped(inputs.KERNEL))
    made(tmp_path / "of zip", "linux", tmp_path / "kernel.zip")
    assert shards(tmp_path / "of zip") == shards(tmp_path / "of tree")
    extra = [
        inputs.member("linux-6.1/init/zz.c", tarfile.LNKTYPE, "linux-6.1/init/main.c"),
        inputs.member("linux-6.1/drivers/_x.c"),
    ]
    (tmp_path / "linked.tar").write_bytes(inputs.tar(extra=extra))
    main = inputs.KERNEL["linux-6.1/init/main.c"]
    files = {**inputs.KERNEL, "linux-6.1/init/zz.c": main, "linux-6.1/drivers/_x.c": b""}
    assert made(tmp_path / "linked", "linux", tmp_path / "linked.tar") == proportional("linux", reference.linux(files))


def test_same_bytes_with_any_processes_locale_and_machine(tmp_path):
    """Against each other, the index too: one process and three, other locales, umasks, hash seeds and places."""
    archive = tmp_path / "kernel.tar.xz"
    archive.write_bytes(inputs.PACKINGS[".xz"](inputs.tar()))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(archive, elsewhere)
    found = []
    for number, (processes, source, environment) in enumerate(
        [
            (1, archive, {"LC_ALL": "C", "PYTHONHASHSEED": "1"}),
            (3, elsewhere / "kernel.tar.xz", {"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "2", "TZ": "Asia/Tokyo"}),
        ]
    ):
        to = tmp_path / f"{number}"
        subprocess.run(
            [*COMMAND, "linux", "--to", to, "--from", source, "--processes", str(processes)],
            env={**os.environ, **environment},
            umask=0o077 if number else 0o022,
            check=True,
            timeout=120,
            capture_output=True,
        )
        found.append({path.name: path.read_bytes() for path in to.iterdir()})
    assert found[0] == found[1]
    assert set(found[0]) == {"index.json", "train-00000.tar", "validation-00000.tar", "test-00000.tar"}


def test_many_shards_by_several_processes(tmp_path):
    """Against one process: pieces of 100 bytes, three a shard, so that 20 shards are cut."""
    file = tmp_path / "text"
    file.write_bytes(text(6000))
    spool = spooling.Spool(file, *(spooling.array("q", numbers) for numbers in ([3000, 0], [3000, 3000])))
    sizes = {"train": 5000, "validation": 999, "test": 1}
    found = []
    for processes in (1, 3):
        folder = tmp_path / str(processes)
        folder.mkdir()
        written = writing.write_corpus(
            spool, sizes, folder, about=ABOUT, processes=processes, piece_bytes=100, shard_pieces=3
        )
        found.append((written, shards(folder)))
    assert found[0] == found[1] and len(found[0][1]) == 17 + 4 + 1


def test_tarfile_and_webdataset_read_the_shards(tmp_path):
    """Against both packages: members in order are the split, headers carry nothing of this machine."""
    file = tmp_path / "dump.xml"
    file.write_bytes(text(20_000))
    sizes = {"train": 18_000, "validation": 1000, "test": 1000}
    (tmp_path / "wp").mkdir()
    spool = spooling.Spool(file, spooling.array("q", [0]), spooling.array("q", [20_000]))
    written = writing.write_corpus(spool, sizes, tmp_path / "wp", about=ABOUT, piece_bytes=600, shard_pieces=4)
    paths = [str(tmp_path / "wp" / shard.file) for shard in written.splits["train"]]
    content = b""
    for path in paths:
        with tarfile.open(path) as archive:
            for member in archive:
                assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
                assert member.mode == 0o644 and member.isreg()
                content += archive.extractfile(member).read()
    assert content == file.read_bytes()[:18_000]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False))
    assert b"".join(sample["bin"] for sample in samples) == content
    assert [sample["__key__"] for sample in samples] == [f"train-{number:08d}" for number in range(30)]


def long_window(content: bytes) -> bytes:
    """A zstd stream that needs a window of 256 MiB, twice what readers allow unless told: as of `zstd --long=28`."""
    packer = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 28})
    packed = packer.compress(content) + packer.flush()
    with pytest.raises(zstd.ZstdError):
        zstd.decompress(packed)
    return packed


@pytest.mark.parametrize(
    "packing", [*inputs.PACKINGS, ".zip", ".tar", ".tar.gz", "folder", "two streams", "two frames", "long window"]
)
def test_a_text_gives_the_same_in_every_packing(tmp_path, packing):
    """Against the text's own slices: raw, each packing, an archive or folder with it, bzip2 and zstd in several."""
    content = b"<mediawiki>\n" + text(9000)
    packed = {
        ".zip": lambda: inputs.zipped({"dump": content}),
        ".tar": lambda: inputs.tar({"dump": content}),
        ".tar.gz": lambda: inputs.PACKINGS[".gz"](inputs.tar({"dump": content})),
        "folder": lambda: content,
        "two streams": lambda: bz2.compress(content[:4000]) + bz2.compress(content[4000:]),
        "two frames": lambda: zstd.compress(content[:4000]) + zstd.compress(content[4000:]),
        "long window": lambda: long_window(content),
    }
    source = tmp_path / "source"
    source.mkdir()
    file = source / "dump"
    file.write_bytes(packed[packing]() if packing in packed else inputs.PACKINGS[packing](content))
    found = made(tmp_path / "corpus", "wp", source if packing == "folder" else file)
    assert found == reference.splits(content, len(content) * 90 // 100, len(content) * 5 // 100)
    some = made(tmp_path / "head", "wp", file, take=1000)
    assert some == reference.splits(content[:1000], 900, 50)


def test_splits_are_the_published_ones():
    """Against the paper's sizes; in proportion for other texts, and every byte in one split."""
    expected = {
        ("wp", 10**8): (90_000_000, 5_000_000, 5_000_000),
        ("wp", 10**9): (900_000_000, 50_000_000, 50_000_000),
        ("linux", 200_000_000): (161_326_322, 10_000_000, 28_673_678),
        ("linux", 25_000_000): (20_165_790, 1_250_000, 3_584_210),
        ("german", 1_218_419): (800_000, 200_000, 218_419),
        ("german", 1_230_000): (800_000, 200_000, 230_000),
        ("code", 279_703): (170_000, 40_000, 69_703),
        ("code", 279_706): (170_000, 40_000, 69_706),
        ("code", 559_406): (340_000, 80_000, 139_406),
    }
    for (corpus, total), sizes in expected.items():
        assert tuple(RECIPES[corpus].sizes(total).values()) == sizes
    for total in (1, 19, 20, 12_345_678):
        assert sum(RECIPES["wp"].sizes(total).values()) == total


BODY = "DIE FRAUENFRAGE\r\n\r\nIhre geschichtliche Entwicklung — größer".encode("latin-1", "replace")
START, END = (
    b"*** START OF %s PROJECT GUTENBERG EBOOK DIE FRAUENFRAGE ***",
    b"*** END OF %s PROJECT GUTENBERG EBOOK X ***",
)


@pytest.mark.parametrize("which", [b"THE", b"THIS"])
@pytest.mark.parametrize("credits", [b"", b"Produced by Charles Franks\r\nand a team\r\n\r\n\r\n"])
@pytest.mark.parametrize("last", [b"", b"End of the Project Gutenberg EBook of Die Frauenfrage\r\n\r\n"])
def test_front_and_back_matter_are_removed(which, credits, last):
    """Against the body they were put around, with the marks of older and newer files."""
    front = b"\xef\xbb\xbfThe Project Gutenberg eBook\r\n\r\n" + START % which + b"\r\n\r\n\r\n" + credits
    back = b"\r\n\r\n\r\n" + last + END % which + b"\r\n\r\nlicence, with *** in it ***\r\n"
    assert book_body(front + BODY + back, Path("x")) == BODY + b"\n"
    assert book_body(BODY, Path("x")) == BODY
    for cut in (front + BODY, BODY + back):
        with pytest.raises(UserError, match="so it is not whole"):
            book_body(cut, Path("x"))


def test_german_and_code(tmp_path):
    (tmp_path / "pg14075.txt").write_bytes(START % b"THE" + b"\n" + BODY * 50 + b"\n" + END % b"THE")
    found = made(tmp_path / "german", "german", tmp_path / "pg14075.txt")
    assert found == proportional("german", BODY * 50 + b"\n")
    (tmp_path / "d3.min.js").write_bytes(text(279_706))
    found = made(tmp_path / "code", "code", tmp_path / "d3.min.js")
    assert found == reference.splits(text(279_706), 170_000, 40_000)


def test_the_command_says_what_it_made(tmp_path, capsys):
    """Against what was given; the second call finds it there, another request does not."""
    file = tmp_path / "some.xml"
    file.write_bytes(text(10_000))
    arguments = ["wp", "--to", str(tmp_path / "wp"), "--from", str(file), "--bytes", "8e3"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "wp, 8,000 bytes from some.xml" in printed.out and "7,200 bytes" in printed.out
    assert "reading some.xml" in printed.err and "(100%)" in printed.err
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "wp").iterdir()}
    assert main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "wp").iterdir()} == before
    for other in (["--bytes", "7e3"], ["--bytes", "all"], ["--from", str(tmp_path / "another.xml")]):
        with pytest.raises(UserError, match="already holds wp .*some.xml"):
            main([*arguments, *other])
    with pytest.raises(UserError, match="--whitespace kept is for linux only"):
        main([*arguments, "--whitespace", "kept"])
    with pytest.raises(UserError, match="--processes 0: allowed: 1 or more"):
        main([*arguments, "--processes", "0"])
    for number in ("some", "0", "1.5", "inf", "nan"):
        with pytest.raises(SystemExit):
            main([*arguments, "--bytes", number])
        assert f"{number!r} is not a whole number of bytes" in capsys.readouterr().err
    os.truncate(tmp_path / "wp" / "test-00000.tar", 100)
    with pytest.raises(UserError, match="test-00000.tar has 100 bytes.*prepare it again"):
        main(arguments)


def test_the_index_names_licence_and_provenance(tmp_path):
    (tmp_path / "kernel.tar").write_bytes(inputs.tar())
    prepare(request("linux", tmp_path / "corpus", str(tmp_path / "kernel.tar")))
    found = index.read(tmp_path / "corpus")
    assert found.licence.startswith("GPL-2.0") and found.options == {
        "bytes": None,
        "whitespace": "collapsed",
        "files": "c",
    }
    assert found.provenance == {
        "input": "kernel.tar",
        "address": None,
        "bytes": (tmp_path / "kernel.tar").stat().st_size,
        "sha256": hashlib.sha256((tmp_path / "kernel.tar").read_bytes()).hexdigest(),
        "files": len([name for name in inputs.KERNEL if name.endswith((".c", ".h")) and "/.git/" not in name]),
    }
