"""A folder for labels that are laid out on a node: made on demand, locked while in use, removed at exit."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from labelstore.errors import StorageError, UsageError

PREFIX = "labelstore-passes-"


class ScratchFolder:
    """A new folder under `parent`, gone when closed, collected or at exit of the process that made it.

    What a killed process left behind is found by its free lock, and removed by the next one.
    """

    def __init__(self, parent: Path | None = None) -> None:
        parent = scratch_parent(parent)
        with storage_errors(parent):
            parent.mkdir(parents=True, exist_ok=True)
            _sweep(parent)
            self.path, handle = _locked_folder(parent)
        self._finalizer = weakref.finalize(self, _remove, self.path, handle, os.getpid())

    def close(self) -> None:
        """Remove the folder and what is in it; mappings that are still open stay readable."""
        self._finalizer()


def scratch_parent(parent: Path | None) -> Path:
    """The folder asked for, or the temporary folder; UsageError for memory that looks like a disk."""
    chosen = Path(tempfile.gettempdir()) if parent is None else Path(parent)
    if chosen.resolve().is_relative_to("/dev/shm"):
        raise UsageError(
            f"`scratch={chosen}` is shared memory, which labels would fill: give a folder on a disk"
        )
    return chosen


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """OSError -> StorageError naming the path and what to do."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "no space left" if full else (error.strerror or str(error))
        raise StorageError(f"{path}: {reason}; choose another folder with `scratch`") from error


def _locked_folder(parent: Path) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        # another process may sweep the folder between these two lines
        with suppress(FileNotFoundError):
            if (handle := take_lock(path / LOCK)) is not None:
                return path, handle


def _sweep(parent: Path) -> None:
    """Remove folders whose owner is gone. One without a lock file is just being made."""
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):
            handle = take_lock(folder / LOCK, make=False)
            if handle is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(handle)


def _remove(path: Path, handle: int, owner: int) -> None:
    # a forked child inherits the finalizer, not the folder
    if os.getpid() == owner:
        shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


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
