"""The folder for what can always be made again: frozen stores' catalogues, large tables of images."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "LABELSTORE_CACHE"


def default_cache() -> Path:
    """LABELSTORE_CACHE, or the user's cache folder."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "labelstore"
