"""Serving a page of runs to browsers of this machine, made anew when a run has written.

Only the loopback address is bound. Two addresses exist, `/` (the page) and `/state` (what stands for the files it was
made of); a request that names another host is refused, so that no page from elsewhere reads this one by a name of its
own that points here (DNS rebinding). Nothing of a request reaches the disk.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from upscale.checkpoint.layout import CONFIG, DIAGNOSTICS, EVALUATIONS, METRICS
from upscale.report import page
from upscale.report.figures import draw
from upscale.report.runs import find_runs, read_runs

HOST = "127.0.0.1"
_HOSTS = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?")
SECONDS_OF_A_REQUEST = 20
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Watcher:
    """The newest page of some runs, and folders of runs; runs that appear in a folder later are taken up."""

    def __init__(self, paths: Sequence[Path], seconds: float):
        """`seconds` is how long a page waits between two looks. Raises ValueError where a path is no run or folder of
        runs."""
        find_runs(paths)
        self.paths, self.seconds = list(paths), seconds
        self._lock = threading.Lock()
        self._made: tuple[str, bytes] = "", b""

    def state(self) -> str:
        """A text that changes when a file that the page is made of does."""
        found: list = []
        try:
            for run in find_runs(self.paths):
                for name in (CONFIG, METRICS, EVALUATIONS, DIAGNOSTICS):
                    known = (run / name).stat() if (run / name).is_file() else None
                    found.append((str(run), name, known and (known.st_mtime_ns, known.st_size)))
        except (ValueError, OSError) as error:
            found.append(str(error))
        return hashlib.blake2b(repr(found).encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()

    def page(self) -> bytes:
        """The page as the runs' files are now; a file that cannot be read is named in it."""
        with self._lock:  # two browsers do not draw the same twice
            state = self.state()
            if self._made[0] != state:
                self._made = state, self._build(state).encode("utf-8", "backslashreplace")
            return self._made[1]

    def _build(self, state: str) -> str:
        waiting: list[Path] = []
        try:
            runs = read_runs(self.paths, waiting)
            watch = page.Watch(self.seconds, state, [str(run) for run in waiting], "")
            return page.build(runs, draw(runs, files=False) if runs else [], watch)
        except (ValueError, OSError) as error:  # as while a file is replaced
            return page.build([], [], page.Watch(self.seconds, state, [], str(error)))


class Server(ThreadingHTTPServer):
    """Answers on the loopback address at `port`, 0 for one that is free; OSError where it is taken."""

    daemon_threads = True

    def __init__(self, watcher: Watcher, port: int):
        self.watcher = watcher
        super().__init__((HOST, port), _Handler)


class _Handler(BaseHTTPRequestHandler):
    """GET of the two addresses; another method is answered by the base class, with 501."""

    server: Server
    server_version, sys_version = "upscale", ""
    timeout = SECONDS_OF_A_REQUEST

    def do_GET(self) -> None:
        named = self.headers.get_all("Host") or []
        if len(named) != 1 or not _HOSTS.fullmatch(named[0]):
            self._answer(403, "text/plain", b"this is served to 127.0.0.1 and localhost only\n")
        elif self.path == "/":
            self._answer(200, "text/html", self.server.watcher.page())
        elif self.path == "/state":
            self._answer(200, "text/plain", self.server.watcher.state().encode())
        else:
            self._answer(404, "text/plain", b"nothing is here; the page is at /\n")

    def _answer(self, code: int, kind: str, content: bytes) -> None:
        self.send_response(code)
        for name, given in HEADERS.items():
            self.send_header(name, given)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Nothing: a look every few seconds would fill the terminal."""
