"""Draw files: planes that are kept, for every run with the same label sets, masks, order and seed.

With a mask, a curriculum, a probability range or several teachers the crops of a pass lie all over the store, so
that its labels are laid out in one sequential walk. That walk is saved where a run names a scratch folder: its
planes are in a kept folder (`labelstore.scratch.kept`) `labelstore-draws/DIGEST` there, DIGEST being of everything that
decides what is in them.

    draw.json                   what the digest is of
    plane-000000.npy            as in planes.py
    plane-000000.crc32c         CRC-32C of that file, written after it: without it, or with another, a plane is none
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import google_crc32c

from labelstore.scratch.folders import scratch_parent, storage_errors
from labelstore.scratch.kept import KeptFolder, write_whole, written_alone
from trainer.loader.planes import PlaneFolder

FOLDER = "labelstore-draws"
DRAW_FILE = "draw.json"
GIGABYTE = 1e9
_READ_AT_ONCE = 1 << 22


def draw_folder(
    parent: Path, described: Mapping[str, Any], *, size: int, keep: float
) -> KeptFolder | None:
    """The folder for what is described, made if need be; None where `size` bytes are more than is kept.

    Removes draw files that were not used for 30 days, and then, oldest first, those beyond `keep` gigabytes.
    """
    if size > keep * GIGABYTE:
        return None
    root = scratch_parent(parent) / FOLDER
    return KeptFolder.open(root, DRAW_FILE, described, room=int(keep * GIGABYTE) - size)


class KeptPlanes:
    """Tells whole planes of a draw folder from damaged ones: each file is read once by each process."""

    def __init__(self, planes: PlaneFolder) -> None:
        self._planes = planes
        self._checked: set[int] = set()

    @staticmethod
    def are_in(folder: Path) -> bool:
        """Whether a folder of planes is a draw file."""
        return (folder / DRAW_FILE).exists()

    def has(self, position: int) -> bool:
        """Whether the plane is there and its bytes are those that were written."""
        if position in self._checked:
            return True
        path = self._planes.file(position)
        try:
            whole = _seal_of(path).read_text() == _checksum(path)
        except (OSError, UnicodeDecodeError):
            return False
        if whole:
            self._checked.add(position)
        return whole

    def seal(self, positions: range) -> None:
        """Write the checksums of planes that have just been written."""
        for position in positions:
            path = self._planes.file(position)
            seal = _seal_of(path)
            with storage_errors(path):
                write_whole(seal, _checksum(path).encode())
            self._checked.add(position)

    def alone(self) -> AbstractContextManager[None]:
        """While this run writes, another one with the same draw file waits, to find what it wants written."""
        return written_alone(self._planes.path)


def _seal_of(path: Path) -> Path:
    return path.with_suffix(".crc32c")


def _checksum(path: Path) -> str:
    checksum = 0
    with path.open("rb") as file:
        while data := file.read(_READ_AT_ONCE):
            checksum = google_crc32c.extend(checksum, data)
    return f"{checksum:08x}"
