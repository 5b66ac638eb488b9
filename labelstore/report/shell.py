"""Makes one-file pages: HTML for a browser, no server, no network, nothing to install.

Data is JSON in a script element that no browser runs; the page's own code, allowed by its digest, writes every name as
text. So a class, an image or a run may be called anything. `shell.js` and `shell.css` hold what pages have in common.

Pages draw their charts themselves, with marks that follow sliders and arrow keys: scripts and styles are 50 kB of the
page of a store and 37 kB of that of runs. Vega with Vega-Lite is 830 kB in each page, and a 34 MB package where it
draws the PNG too; matplotlib draws pictures in files, photographs among them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from labelstore.arrays.durable import check_place, storage_errors
from labelstore.errors import UsageError


def check_page(path: Path) -> None:
    """UsageError unless the ending is one of a page, StorageError where its folder is not there."""
    check_place(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"`out={path}`: give a file that ends in .html")


def made_by() -> dict[str, str]:
    """When a page was made and by what, for its head."""
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return {"made": now, "version": version("labelstore")}


def render(data: dict[str, Any], script: Path, style: Path | None = None) -> str:
    """A page that shows this data by its own script, and what is special in its style.

    >>> "<b>" in render({"name": "<b>"}, Path(__file__).with_name("page.js"))
    False
    """
    own = "" if style is None else _text(style)
    css = _text(Path(__file__).with_name("shell.css")) + own
    js = f'"use strict";\n(() => {{\n{_text(Path(__file__).with_name("shell.js"))}{_text(script)}}})();\n'
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_digest(js)}",
            f"style-src {_digest(css)}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    values = {
        "POLICY": policy,
        "STYLE": css,
        # ASCII, and no "<": nothing in it can end the element or begin another
        "DATA": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "SCRIPT": js,
    }
    pieces = _text(Path(__file__).with_name("shell.html")).split("@@")
    # every second piece is a name; a value is never looked through for names
    return "".join(values[piece] if at % 2 else piece for at, piece in enumerate(pieces))


def save(text: str, path: Path) -> None:
    """Write a page under a temporary name, then rename it; StorageError where the disk refuses."""
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    with storage_errors(path):
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
