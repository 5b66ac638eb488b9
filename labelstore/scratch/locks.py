"""A lock on a file, which the system frees when its holder ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

LOCK = "in-use.lock"
"""Name of the file in a folder that says whether a process uses the folder."""


def take_lock(path: Path, *, make: bool = True) -> int | None:
    """Lock a file for this process; its descriptor, or None where another process holds it or it is not there.

    Closing the descriptor frees the lock. OSError where the disk refuses, also for a disk without locks.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if make else 0)
    while True:
        try:
            handle = os.open(path, flags, 0o600)
        except FileNotFoundError:
            if make:
                raise
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # its last holder may have removed the file between the two lines above
            if _is_file(handle, path):
                return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError:
            os.close(handle)
            raise
        os.close(handle)


def _is_file(handle: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(handle), there)
