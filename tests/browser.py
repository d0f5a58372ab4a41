"""One HTML page as a real browser shows it, at the width of a phone and at that of a screen."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = (390, 1440)
LISTEN = """<script>
window.said = [];
for (const name of ['error', 'warn', 'log', 'info']) console[name] = (...words) => said.push(words.join(' '));
for (const kind of ['error', 'unhandledrejection', 'securitypolicyviolation'])
  addEventListener(kind, event => said.push(event.message || `${kind} ${event.target.src || event.reason}`), true);
</script>"""
MEASURE = """<script>
addEventListener('load', () => {
  document.title = JSON.stringify([...document.querySelectorAll('iframe')].map(frame => ({
    width: frame.contentWindow.innerWidth,
    needs: frame.contentDocument.scrollingElement.scrollWidth,
    fetched: frame.contentWindow.performance.getEntriesByType('resource').map(one => one.name),
    said: frame.contentWindow.said,
  })));
});
</script>"""
QUIET = (
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
)


@dataclass(frozen=True)
class Look:
    """What the browser saw: by how many pixels a width is overrun, what it fetched, what its console said."""

    overrun: dict[int, int]
    fetched: list[str]
    console: list[str]


def look(page: str, folder: Path) -> Look:
    """Opens the page in Chromium; skips where none is installed, which CI must not."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail("a browser is required here; .ci/run installs it")
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    frames = "".join(
        f'<iframe srcdoc="{html.escape(LISTEN + page)}" style="width:{width}px;height:900px;border:0"></iframe>'
        for width in WIDTHS
    )
    around = folder / "around.html"
    around.write_text(f"<!doctype html><title></title>{MEASURE}{frames}", encoding="utf-8")
    rooted = ["--no-sandbox"] if os.geteuid() == 0 else []
    command = [
        program,
        "--headless",
        *rooted,
        *QUIET,
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1600,1000",
    ]
    told = subprocess.run(
        [*command, "--dump-dom", around.as_uri()], capture_output=True, text=True, check=True, timeout=600
    )
    title = re.search("<title>(.*?)</title>", told.stdout)
    assert title is not None, told.stderr
    seen = json.loads(html.unescape(title[1]))
    assert [one["width"] for one in seen] == list(WIDTHS)
    return Look(
        overrun={one["width"]: max(one["needs"] - one["width"], 0) for one in seen},
        fetched=[name for one in seen for name in one["fetched"]],
        console=[line for one in seen for line in one["said"]],
    )
