"""Opening a page from disk in Chromium, without a window and without a network."""

import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars --enable-logging=stderr"
).split()
_MEASURE = """<script>document.documentElement.dataset.images = JSON.stringify([...document.images].map(
image => ({alt: image.alt, loaded: image.complete, width: image.naturalWidth, height: image.naturalHeight})))</script>"""


@dataclass
class Opened:
    """What a browser made of a page: its DOM, its console's lines (script errors, blocked loads), and a picture (PNG)."""

    dom: str
    console: list[str]
    picture: bytes


def find_browser() -> str:
    """Path of Chromium or Chrome; the test is skipped where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    return found


def open_page(page: Path, width: int = 1200, height: int = 1000) -> Opened:
    """Open a file; host names resolve to nothing."""
    browser = find_browser()
    with tempfile.TemporaryDirectory(prefix="browser", ignore_cleanup_errors=True) as folder:
        picture = Path(folder) / "picture.png"
        settings = [f"--user-data-dir={folder}/profile", f"--window-size={width},{height}", f"--screenshot={picture}"]
        run = subprocess.run(
            [browser, *OPTIONS, *settings, "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom", page.resolve().as_uri()],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=180,
        )
        assert run.returncode == 0 and picture.is_file(), run.stderr[-3000:]
        return Opened(run.stdout, re.findall(r"CONSOLE[^\n]*", run.stderr), picture.read_bytes())


def image_sizes(page: Path, folder: Path) -> list[dict]:
    """The images of a page as a browser loaded them: `alt`, `loaded`, `width` and `height` in pixels.

    They are measured by a script, in a copy of the page that allows one.
    """
    text = page.read_text(encoding="utf-8")
    allowed = text.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';")
    assert allowed != text and allowed.count("</body>") == 1
    copy = folder / "measured.html"
    copy.write_text(allowed.replace("</body>", f"{_MEASURE}</body>"), encoding="utf-8")
    found = re.search(r'<html[^>]* data-images="([^"]*)"', open_page(copy).dom)
    return json.loads(found[1].replace("&quot;", '"').replace("&amp;", "&"))
