"""Pictures in files: which endings there are, and a file that appears when it is whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf", ".webp")


def check_picture(path: Path) -> None:
    """UsageError unless the ending is one of a picture, StorageError where its folder is not there."""
    from labelstore.arrays.durable import check_place
    from labelstore.errors import UsageError

    check_place(path)

    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--out {path}: give a file that ends in {', '.join(FORMATS)}")


def write_picture(figure: Figure, path: Path) -> None:
    """Save a figure under a temporary name, then rename it; StorageError where the disk refuses."""
    from labelstore.arrays.durable import storage_errors

    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    with storage_errors(path):
        try:
            figure.savefig(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
