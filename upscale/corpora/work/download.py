"""Fetching a file over HTTP so that a killed or broken download continues where it stopped.

The usual package, pooch, begins a broken download again from its first byte.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from upscale.console.progress import Progress
from upscale.errors import UserError
from upscale.files import write_atomically

TIMEOUT_SECONDS = 60
BLOCK_BYTES = 1 << 20


def is_address(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def name_of(address: str) -> str:
    """The last part of an address's path as the name of a file, without what has no place in one."""
    name = PurePosixPath(unquote(urlsplit(address).path)).name
    return re.sub(r"[\x00-\x1f\x7f]", "", name)[-100:] or "download"


def fetch(address: str, folder: Path, advice: str) -> Path:
    """The file at an address, in `folder` under a name of its own; raises UserError, ending with `advice`.

    A part from before is continued only if the server says (If-Range) that the file has not changed since.
    """
    key = hashlib.sha256(address.encode()).hexdigest()[:12]
    whole = folder / f"{key}-{name_of(address)}"
    part, about = folder / f"{key}.part", folder / f"{key}.json"
    if whole.exists():
        return whole
    try:
        request = urllib.request.Request(address, headers={"User-Agent": "upscale"})
        start = part.stat().st_size if part.exists() and about.exists() else 0
        if start:
            request.add_header("Range", f"bytes={start}-")
            request.add_header("If-Range", json.loads(about.read_bytes())["version"])
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            start = start if answer.status == HTTPStatus.PARTIAL_CONTENT else 0
            version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
            length = answer.headers.get("Content-Length", "")
            total = int(length) + start if length.isascii() and length.isdigit() else None
            if not start:
                part.unlink(missing_ok=True)
                about.unlink(missing_ok=True)
                if version and not version.startswith("W/"):
                    write_atomically(about, json.dumps({"version": version}).encode())
            received = _receive(answer, part, start, total, f"downloading {name_of(address)}")
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        if getattr(error, "code", None) == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and part.exists():
            part.unlink()
            return fetch(address, folder, advice)
        reason = getattr(error, "reason", None) or error
        raise UserError(f"cannot download {address} ({reason}). {advice}") from None
    if total is not None and received != total:
        raise UserError(f"the download of {address} ended at {received:,} of {total:,} bytes: run it again. {advice}")
    os.replace(part, whole)
    about.unlink(missing_ok=True)
    return whole


def _receive(answer, part: Path, start: int, total: int | None, label: str) -> int:
    with open(part, "ab") as file, Progress(label, total) as progress:
        progress(start)
        while block := answer.read(BLOCK_BYTES):
            file.write(block)
            progress(len(block))
        file.flush()
        os.fsync(file.fileno())
        return progress.done
