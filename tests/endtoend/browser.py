"""Pages in headless Chromium: what their scripts say, at several widths."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--virtual-time-budget=5000",
    "--window-size=1400,1000", "--hide-scrollbars", "--enable-logging=stderr",
)  # fmt: skip
HARNESS = """<!DOCTYPE html><pre id="told"></pre>
<script>
const told = {};
addEventListener("message", event => {
  told[event.data.width] = event.data;
  document.getElementById("told").textContent = JSON.stringify(told);
});
</script>
"""


def browse(page: Path) -> subprocess.CompletedProcess[str]:
    """Open a page, with a profile beside it: its DOM in the end, and what the browser logged."""
    assert BROWSER is not None
    command = [BROWSER, *FLAGS, f"--user-data-dir={page.parent / 'profile'}", "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)


def probed(page: Path, probe: str, widths: Sequence[int]) -> dict[str, Any]:
    """What a script within a page posts to its parent, by the width of the frame.

    The script posts an object that has `width`. The page's policy for scripts is left out for it.
    """
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    (page.parent / "probed.html").write_text(text.replace("</head>", probe + "</head>"))
    frame = '<iframe src="probed.html" width="{}" height="900" style="border:0"></iframe>\n'
    harness = page.parent / "harness.html"
    harness.write_text(HARNESS + "".join(map(frame.format, widths)))
    told: dict[str, Any] = json.loads(
        html.unescape(re.search(r'<pre id="told">(.*?)</pre>', browse(harness).stdout)[1])  # type: ignore[index]
    )
    assert set(told) == {str(width) for width in widths}
    return told
