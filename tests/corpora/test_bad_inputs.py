"""What users really pass by mistake, and what goes wrong on disks and networks, against real files and servers."""

from __future__ import annotations

import bz2
import errno
import hashlib
import http.server
import io
import os
import resource
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from tests.corpora import inputs
from tests.corpora.small import request, text
from upscale.corpora import prepare
from upscale.corpora.recipes import RECIPES, Known
from upscale.corpora.shards.reading import Corpus, Windows
from upscale.errors import UserError

HTML = b"\n <!DOCTYPE html><html><body>404 Not Found</body></html>" + b" " * 2000
RUN = [sys.executable, "-c", "from upscale.cli import main; main()", "prepare"]


def fails(tmp_path: Path, corpus: str, source: Path | str, message: str, **changes) -> None:
    """Preparing raises UserError with the message and leaves no folder behind."""
    with pytest.raises(UserError, match=message):
        prepare.prepare(request(corpus, tmp_path / "to", str(source), **changes))
    assert not (tmp_path / "to").exists()


def test_web_pages_instead_of_texts(tmp_path):
    """An error page under the name of a text or a packed one, or inside a packing, a zip or a tar."""
    for number, content in enumerate(
        [HTML, bz2.compress(HTML), inputs.zipped({"enwik8": HTML}), inputs.tar({"enwik8": HTML})]
    ):
        (tmp_path / f"file{number}.zip").write_bytes(content)
        fails(tmp_path, "wp", tmp_path / f"file{number}.zip", "is an HTML page, not the text")
    fails(tmp_path, "linux", tmp_path / "file0.zip", "is an HTML page, not the text")


@pytest.mark.parametrize("packing", [".gz", ".bz2", ".xz", ".zst", ".zip"])
def test_truncated_and_damaged_packings(tmp_path, packing):
    """Cut in the middle, and with a byte changed: named as damaged, for a text and for an archive."""
    archive = inputs.zipped(inputs.KERNEL) if packing == ".zip" else inputs.PACKINGS[packing](inputs.tar())
    single = inputs.zipped({"x": text(9000)}) if packing == ".zip" else inputs.PACKINGS[packing](text(9000))
    file = tmp_path / "file"
    for corpus, content, asked in (("linux", archive, {"files": "all"}), ("wp", single, {})):
        place = 300 if packing == ".zip" else len(content) // 2  # in a zip, headers have bytes that mean nothing
        for bad in (content[:place], content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]):
            file.write_bytes(bad)
            fails(tmp_path, corpus, file, "is damaged or truncated .*download or copy it again", **asked)


def test_truncated_plain_tars(tmp_path):
    """Cut inside a member, and between two members, which tarfile alone takes for the end."""
    content = inputs.tar()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        between = archive.getmembers()[4].offset
    for size in (between, between + 700, len(content) // 2):
        (tmp_path / "kernel.tar").write_bytes(content[:size])
        fails(tmp_path, "linux", tmp_path / "kernel.tar", "is damaged or truncated")


@pytest.mark.parametrize(
    ("member", "what"),
    [
        (inputs.member("/etc/passwd.c"), "the path '/etc/passwd.c'"),
        (inputs.member("linux/../../x.c"), r"the path 'linux/../../x.c'"),
        (inputs.member("linux/x.c", tarfile.SYMTYPE, "/etc/passwd"), "the link 'linux/x.c' to '/etc/passwd'"),
        (inputs.member("linux/x.c", tarfile.SYMTYPE, "a/../../../x"), "the link 'linux/x.c'"),
        (inputs.member("linux/x.c", tarfile.LNKTYPE, "../x"), "the link 'linux/x.c'"),
        (inputs.member("linux/x.c", tarfile.LNKTYPE, "/x"), "the link 'linux/x.c'"),
    ],
)
def test_archives_that_lead_out_are_refused(tmp_path, member, what):
    (tmp_path / "kernel.tar").write_bytes(inputs.tar(extra=[member]))
    fails(tmp_path, "linux", tmp_path / "kernel.tar", f"is refused: {what}.* leads out of the archive")


def test_zips_that_lead_out_are_refused(tmp_path):
    link = zipfile.ZipInfo("linux/x.c")
    link.external_attr = 0o120777 << 16
    for name, content in (("../x.c", b"x"), (link, b"../../x")):
        with zipfile.ZipFile(tmp_path / "kernel.zip", "w") as archive:
            archive.writestr(name, content)
        fails(tmp_path, "linux", tmp_path / "kernel.zip", "leads out of the archive")


def test_inputs_that_are_something_else(tmp_path):
    (tmp_path / "empty tree" / "docs").mkdir(parents=True)
    (tmp_path / "empty tree" / "docs" / "README").write_text("no source")
    fails(tmp_path, "linux", tmp_path / "empty tree", r"has no C source \(\*.c, \*.h")
    (tmp_path / "blank.c").mkdir()
    fails(tmp_path, "linux", tmp_path / "blank.c", "has no file with a text", files="all")
    (tmp_path / "text").write_bytes(text(100))
    fails(tmp_path, "linux", tmp_path / "text", "neither a folder nor an archive; allowed: a kernel tree")
    (tmp_path / "nothing").touch()
    fails(tmp_path, "wp", tmp_path / "nothing", "is empty")
    fails(tmp_path, "wp", tmp_path / "nowhere", "nowhere does not exist. It may be enwik8 or enwik9")
    fails(tmp_path, "wp", tmp_path, "is a folder with 2 files; pass the one that is the text")
    (tmp_path / "two.zip").write_bytes(inputs.zipped({"a": text(50), "b": text(50)}))
    fails(tmp_path, "wp", tmp_path / "two.zip", "holds several files, among them a and b")
    (tmp_path / "none.zip").write_bytes(inputs.zipped({}))
    fails(tmp_path, "wp", tmp_path / "none.zip", "holds no file")
    fails(tmp_path, "wp", "/dev/null", "neither a file nor a folder")
    (tmp_path / "tiny").write_bytes(text(10))
    fails(tmp_path, "wp", tmp_path / "tiny", "gives 10 bytes of text, too few for three splits")


def test_a_corpus_smaller_than_one_window_is_told_before_training(tmp_path):
    (tmp_path / "small").write_bytes(text(500))
    prepare.prepare(request("wp", tmp_path / "to", str(tmp_path / "small")))
    with pytest.raises(UserError, match="train split of .* has 450 bytes; one window needs 513 "):
        Windows.open([tmp_path / "to"], context=512, seed=0)


def test_a_wrong_checksum(tmp_path, monkeypatch):
    """Of the text, whatever its packing, and of the file; right ones pass, and --no-checksum takes another."""
    content = text(1000)
    known = (Known(r"good(\.bz2)?", "md5", hashlib.md5(content).hexdigest(), of_text=True),)
    monkeypatch.setattr(RECIPES["wp"], "known", known)
    (tmp_path / "good").write_bytes(content)
    (tmp_path / "good.bz2").write_bytes(bz2.compress(content))
    for name in ("good", "good.bz2"):
        found = prepare.prepare(request("wp", tmp_path / f"of {name}", str(tmp_path / name)))
        assert found.provenance["text_md5"] == hashlib.md5(content).hexdigest()
    (tmp_path / "good.bz2").write_bytes(bz2.compress(content[:-1]))
    fails(tmp_path, "wp", tmp_path / "good.bz2", "is not what its name says: md5 .*of its text instead of")
    prepare.prepare(request("wp", tmp_path / "other", str(tmp_path / "good.bz2"), checksum=False))
    (tmp_path / "linux-6.1.tar.xz").write_bytes(inputs.PACKINGS[".xz"](inputs.tar()))
    fails(tmp_path, "linux", tmp_path / "linux-6.1.tar.xz", "is not what its name says: sha256 .* --no-checksum")


def test_a_full_disk(tmp_path):
    """A real limit on the size of files: one message, exit code 2, nothing left; while spooling and in a worker."""
    (tmp_path / "big.gz").write_bytes(inputs.PACKINGS[".gz"](text(3_000_000)))
    (tmp_path / "big").write_bytes(text(3_000_000))
    for name in ("big.gz", "big"):
        done = subprocess.run(
            [*RUN, "wp", "--to", tmp_path / "to", "--from", tmp_path / name, "--processes", "2"],
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 2
        message = done.stderr.splitlines()[-1]
        assert f"cannot write the corpus to {tmp_path / 'to'}: {os.strerror(errno.EFBIG)}" in message
        assert not (tmp_path / "to").exists()


def test_no_permission(tmp_path):
    """As another user where this one is root: neither the target nor the input may be touched, each is named."""
    (tmp_path / "text").write_bytes(text(1000))
    (tmp_path / "text").chmod(0)
    (tmp_path / "closed").mkdir(mode=0o500)
    (tmp_path / "readable").write_bytes(text(1000))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write the corpus to .*file/to: Not a directory"):
        prepare.prepare(request("wp", tmp_path / "file" / "to", str(tmp_path / "readable")))
    program = """if True:
        import os, sys
        from upscale.cli.prepare import main
        from upscale.errors import UserError
        os.chdir(sys.argv[1])
        if os.geteuid() == 0:
            os.setgroups([]); os.setgid(65534); os.setuid(65534)
        for source, to in (("readable", "closed/to"), ("text", "/tmp/never-made/to")):
            try:
                main(["wp", "--to", to, "--from", source, "--processes", "1"])
            except UserError as error:
                print(error)
    """
    for path in [tmp_path, *tmp_path.parents[:2]]:
        path.chmod(path.stat().st_mode | 0o055)
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert "cannot write the corpus to closed/to: Permission denied" in lines[0], done.stderr
    assert "text cannot be read: Permission denied" in lines[1]


@pytest.mark.parametrize("calls", [1, 2, 3, 4])
def test_a_killed_prepare_is_made_again(tmp_path, calls):
    """Killed at the first and later shards and just before the index: no corpus; the same call again completes it."""
    (tmp_path / "text").write_bytes(text(5000))
    program = """if True:
        import os, signal, sys
        from upscale.cli.prepare import main
        replace, seen = os.replace, []
        def counted(*given):
            seen.append(given)
            if len(seen) == int(sys.argv[1]):
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(*given)
        os.replace = counted
        main(["wp", "--to", sys.argv[2], "--from", sys.argv[3], "--processes", "1"])
    """
    command = [sys.executable, "-c", program, str(calls), str(tmp_path / "to"), str(tmp_path / "text")]
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == -signal.SIGKILL
    with pytest.raises(UserError, match="is not a prepared corpus: its `upscale prepare` has not finished"):
        Corpus.open(tmp_path / "to")
    prepare.prepare(request("wp", tmp_path / "to", str(tmp_path / "text")))
    prepare.prepare(request("wp", tmp_path / "fresh", str(tmp_path / "text")))
    left, fresh = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("to", "fresh"))
    assert left == fresh and len(fresh) == 4


def test_folders_in_use_are_left_alone(tmp_path):
    """A folder with other things, and one in which another prepare is at work."""
    (tmp_path / "text").write_bytes(text(1000))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("x")
    with pytest.raises(UserError, match="mine is not empty; allowed: a new or empty folder"):
        prepare.prepare(request("wp", tmp_path / "mine", str(tmp_path / "text")))
    assert (tmp_path / "mine" / "thesis").read_text() == "x"
    with (
        prepare._working_folder(tmp_path / "busy"),
        pytest.raises(UserError, match="another `upscale prepare` is writing"),
    ):
        prepare.prepare(request("wp", tmp_path / "busy", str(tmp_path / "text")))


class Server(http.server.ThreadingHTTPServer):
    """Serves one content with ranges and a version; `cut` ends the next answers after so many bytes."""

    def __init__(self, content: bytes, version: str = '"1"') -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.content, self.version, self.cut, self.asked = content, version, None, []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def address(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server: Server = self.server
        asked = self.headers.get("Range")
        server.asked.append(asked)
        if self.path.endswith("missing"):
            self.send_error(404)
            return
        start = 0
        if asked and self.headers.get("If-Range") == server.version:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(server.content):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        self.send_header("ETag", server.version)
        self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        self.wfile.write(server.content[start:][: server.cut])

    def log_message(self, *arguments) -> None:
        return


def splits_of(folder: Path) -> bytes:
    return b"".join(split.text().tobytes() for split in Corpus.open(folder).splits.values())


def test_a_broken_download_continues(tmp_path):
    """Against the server's content: the second call asks for the rest only, and nothing but the corpus is left."""
    content = text(300_000)
    server = Server(bz2.compress(content))
    server.cut = 100_000
    asked = request("wp", tmp_path / "to", server.address("dump.bz2"))
    with pytest.raises(UserError, match=r"ended at 100,000 of .* bytes: run it again. Without a network here"):
        prepare.prepare(asked)
    server.cut = None
    found = prepare.prepare(asked)
    assert server.asked == [None, "bytes=100000-"] and splits_of(tmp_path / "to") == content
    assert found.provenance["input"] == "dump.bz2" and found.provenance["address"] == server.address("dump.bz2")
    assert sorted(path.suffix for path in (tmp_path / "to").iterdir()) == [".json", ".tar", ".tar", ".tar"]


def test_a_file_that_changed_meanwhile_is_fetched_anew(tmp_path):
    server = Server(text(200_000, seed=1))
    server.cut = 100_000
    asked = request("wp", tmp_path / "to", server.address("text"))
    with pytest.raises(UserError, match="run it again"):
        prepare.prepare(asked)
    server.cut, server.version, server.content = None, '"2"', text(200_000, seed=2)
    prepare.prepare(asked)
    assert splits_of(tmp_path / "to") == text(200_000, seed=2)


def test_downloads_that_fail(tmp_path):
    """No server, no file, a web page: what to download and how to pass it; a page is not kept for the next call."""
    server = Server(HTML)
    advice = "Without a network here, download it elsewhere and pass the file: `upscale prepare wp --to .* --from FILE`"
    fails(tmp_path, "wp", server.address("missing"), f"cannot download .*Not Found.*{advice}")
    fails(tmp_path, "wp", server.address("enwik8.zip"), "is an HTML page, not the text", checksum=False)
    server.shutdown()
    server.server_close()
    fails(tmp_path, "wp", server.address("enwik8.zip"), f"cannot download .*refused.*{advice}. FILE may be enwik8")
