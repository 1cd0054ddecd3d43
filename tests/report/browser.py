"""A real headless browser that opens a page in a frame, does something there, and tells what it sees."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import matplotlib.image
import numpy
import pytest

from tests import pace

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER_SECONDS = 60
DARK = "--blink-settings=preferredColorScheme=0"

# Runs `script` in the page, once it has loaded, and writes what that returns into itself.
WRAPPER = """<!DOCTYPE html><html><head><style>
body {{ margin: 0 }} iframe {{ border: 0; width: {width}px; height: {height}px }}
</style></head><body><iframe src="{name}"></iframe><script>
window.onload = () => {{
  const view = document.querySelector("iframe").contentWindow, page = view.document;
  const all = (query) => [...page.querySelectorAll(query)];
  const seen = (query) => all(query).filter((one) => one.getClientRects().length);
  const found = (() => {{ {script} }})();
  const result = document.createElement("script");
  result.type = "application/json"; result.id = "result"; result.textContent = JSON.stringify(found);
  document.body.append(result);
}};
</script></body></html>"""


def program() -> str:
    """The browser's path; skips the test where there is none."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"needs a browser on PATH: one of {', '.join(BROWSERS)}")
    return found


def command(scratch: Path, width: int, height: int) -> list[str]:
    return [
        *(
            program(),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
        ),
        *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars"),
        # without it the wrapper may not look into the page beside it
        "--allow-file-access-from-files",
        *(f"--user-data-dir={scratch / 'profile'}", f"--window-size={width},{height}"),
        *("--force-device-scale-factor=1", "--virtual-time-budget=5000"),
    ]


def browse(
    page: Path, script: str, scratch: Path, width: int, height: int, *options: str
) -> tuple[dict, numpy.ndarray]:
    """What `script` returned in the page at this width, and the screenshot, shape (height, width, 3), from 0 to 1."""
    wrapper, picture = page.parent / f"wrapper-{width}.html", scratch / "picture.png"
    wrapper.write_text(WRAPPER.format(width=width, height=height, name=page.name, script=script))
    words = [*command(scratch, width, height), *options, f"--screenshot={picture}", "--dump-dom"]
    done = pace.run([*words, wrapper.resolve().as_uri()], BROWSER_SECONDS)
    found = re.search(r'<script type="application/json" id="result">(.*?)</script>', done.stdout, re.DOTALL)
    assert done.returncode == 0 and found, done.stderr[-2000:]
    return json.loads(found.group(1)), matplotlib.image.imread(picture)[..., :3]
