"""Draw files: planes that are kept, for every run with the same label sets, masks, order and seed.

With a mask, a curriculum, a probability range or several teachers the crops of a pass lie all over the store, so
that its labels are laid out in one sequential walk. That walk is saved where a run names a scratch folder: its
planes are under `labelstore-draws/DIGEST` there, DIGEST being of everything that decides what is in them.

    draw.json                   what the digest is of; its time is when a run last used the folder
    plane-000000.npy            as in planes.py
    plane-000000.crc32c         CRC-32C of that file, written after it: without it, or with another, a plane is none
    in-use.lock                 held (shared) by every run that uses the folder; whoever removes it needs it alone
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import google_crc32c

from trainer.folder_lock import LOCK, take_lock
from trainer.loader.planes import PlaneFolder
from trainer.loader.scratch import scratch_parent, storage_errors

FOLDER = "labelstore-draws"
DRAW_FILE = "draw.json"
WRITING = "writing.lock"
MAX_AGE_DAYS = 30.0
"""A draw file that no run has used for so long is removed."""
GIGABYTE = 1e9
_READ_AT_ONCE = 1 << 22


class DrawFolder:
    """A folder of planes that outlives its run; `close` leaves it to the next one."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self._finalizer = weakref.finalize(self, os.close, handle)

    @classmethod
    def open(
        cls, parent: Path, described: Mapping[str, Any], *, size: int, keep: float
    ) -> Self | None:
        """The folder for what is described, made if need be; None where `size` bytes are more than is kept.

        Removes draw files that nobody used for 30 days, and then, oldest first, those beyond `keep` gigabytes.
        """
        if size > keep * GIGABYTE:
            return None
        text = json.dumps(dict(described), sort_keys=True, indent=1)
        root = scratch_parent(parent) / FOLDER
        path = root / hashlib.sha256(text.encode()).hexdigest()[:32]
        with storage_errors(root):
            while True:
                path.mkdir(parents=True, exist_ok=True)
                handle = os.open(path / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
                fcntl.flock(handle, fcntl.LOCK_SH)
                if (path / LOCK).exists():
                    break
                os.close(handle)  # removed by another run between the lines above
            kept = path / DRAW_FILE
            if kept.exists():
                os.utime(kept)
            else:
                _write_text(kept, text)
        _make_room(root, int(keep * GIGABYTE) - size, besides=path)
        return cls(path, handle)

    def close(self) -> None:
        """Give the folder up; its planes stay."""
        self._finalizer()


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
                _write_text(seal, _checksum(path))
            self._checked.add(position)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While this run writes, another one with the same draw file waits, to find what it wants written."""
        with storage_errors(self._planes.path):
            handle = os.open(
                self._planes.path / WRITING, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600
            )
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _write_text(path: Path, text: str) -> None:
    """A reader sees the whole text or none; it need not outlive the machine."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    temporary.write_text(text)
    temporary.rename(path)


def _seal_of(path: Path) -> Path:
    return path.with_suffix(".crc32c")


def _checksum(path: Path) -> str:
    checksum = 0
    with path.open("rb") as file:
        while data := file.read(_READ_AT_ONCE):
            checksum = google_crc32c.extend(checksum, data)
    return f"{checksum:08x}"


def _make_room(root: Path, room: int, *, besides: Path) -> None:
    """Remove unused draw files until the others fit into `room` bytes; those in use stay, and count."""
    found = []
    for folder in root.iterdir():
        if folder == besides or not folder.is_dir():
            continue
        with suppress(OSError):
            kept = folder / DRAW_FILE
            used = (kept if kept.exists() else folder).stat().st_mtime
            size = sum(file.stat().st_size for file in folder.iterdir())
            found.append((used, size, folder))
    total = sum(size for _, size, _ in found)
    oldest = time.time() - MAX_AGE_DAYS * 86_400
    for used, size, folder in sorted(found):
        if (used < oldest or total > room) and _removed(folder):
            total -= size


def _removed(folder: Path) -> bool:
    """Remove a draw file unless a run uses it."""
    try:
        handle = take_lock(folder / LOCK)
    except OSError:
        return False
    if handle is None:
        return False
    shutil.rmtree(folder, ignore_errors=True)
    os.close(handle)
    return True
