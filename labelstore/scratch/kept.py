"""Folders of laid-out labels that stay for later runs: what is in one follows from what its name is a digest of.

ROOT/DIGEST/ABOUT           what the digest is of; its time is when a process last opened the folder
ROOT/DIGEST/in-use.lock     held (shared) by every process that uses the folder; removal takes it exclusively
ROOT/DIGEST/writing.lock    held by the one process that writes; the others wait, and find what they want written
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

from labelstore.scratch.folders import LOCK, storage_errors, take_lock

WRITING = "writing.lock"
MAX_AGE_DAYS = 30.0
"""A folder that no process has opened for so long is removed."""


class KeptFolder:
    """One such folder, in use by this process until `close`, which leaves it to the next one."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self._finalizer = weakref.finalize(self, os.close, handle)

    @classmethod
    def open(
        cls, root: Path, about: str, described: Mapping[str, Any], *, room: int | None = None
    ) -> Self:
        """The folder under `root` for what is described, made if need be; `about` names the file that says what.

        Removes folders there that were not used for 30 days, and then, oldest first, those beyond `room` bytes.
        """
        text = json.dumps(dict(described), sort_keys=True, indent=1)
        path = root / hashlib.sha256(text.encode()).hexdigest()[:32]
        with storage_errors(root):
            handle = _in_use(path, make=True)
            kept = path / about
            if kept.exists():
                os.utime(kept)
            else:
                write_whole(kept, text.encode())
        _make_room(root, about, room, besides=path)
        return cls(path, handle)

    @classmethod
    def attach(cls, path: Path) -> Self:
        """A folder that another process, which still uses it, has opened. StorageError where it is gone."""
        with storage_errors(path):
            handle = _in_use(path, make=False)
        return cls(path, handle)

    def close(self) -> None:
        """Give the folder up; what is in it stays."""
        self._finalizer()


@contextmanager
def written_alone(folder: Path) -> Iterator[None]:
    """While this process writes into a kept folder, others that want to wait."""
    with storage_errors(folder):
        handle = os.open(folder / WRITING, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write_whole(path: Path, data: bytes) -> None:
    """A reader sees the whole file or none; it need not outlive the machine."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    temporary.write_bytes(data)
    temporary.rename(path)


def _in_use(path: Path, *, make: bool) -> int:
    """A descriptor that holds the folder's lock with others."""
    while True:
        if make:
            path.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if make else 0)
        handle = os.open(path / LOCK, flags, 0o600)
        fcntl.flock(handle, fcntl.LOCK_SH)
        if (path / LOCK).exists():
            return handle
        os.close(handle)  # removed by another process between the lines above


def _make_room(root: Path, about: str, room: int | None, *, besides: Path) -> None:
    """Remove unused folders until the others fit into `room` bytes; those in use stay, and count."""
    found = []
    for folder in root.iterdir():
        if folder == besides or not folder.is_dir():
            continue
        with suppress(OSError):
            kept = folder / about
            used = (kept if kept.exists() else folder).stat().st_mtime
            size = sum(file.stat().st_size for file in folder.iterdir())
            found.append((used, size, folder))
    total = sum(size for _, size, _ in found)
    oldest = time.time() - MAX_AGE_DAYS * 86_400
    for used, size, folder in sorted(found):
        if (used < oldest or (room is not None and total > room)) and _removed(folder):
            total -= size


def _removed(folder: Path) -> bool:
    """Remove a folder unless a process uses it."""
    try:
        handle = take_lock(folder / LOCK)
    except OSError:
        return False
    if handle is None:
        return False
    shutil.rmtree(folder, ignore_errors=True)
    os.close(handle)
    return True
