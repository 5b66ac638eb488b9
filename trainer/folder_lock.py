"""A folder that one process uses at a time: a lock file in it, which the system frees when its holder ends.

On one machine, and on a network disk whose locks reach all machines, the lock alone decides. On a disk whose locks stay
on each machine, the file also says who holds it, and its holder touches it every few seconds: a process on another
machine that finds it watches for that before it takes the folder.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from labelstore.commit.lease_keeper import is_dead, owner_name
from labelstore.errors import ConflictError
from labelstore.scratch.folders import LOCK, take_lock

BEAT_SECONDS = 15.0
"""From one touch of the lock file to the next."""
WATCH_SECONDS = 45.0
"""How long another machine's lock file is watched: three touches, since a busy process may be late."""
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
MAX_OWNER = 4096


class FolderLock:
    """Holds a folder until `release`, or the end of the process."""

    def __init__(
        self, folder: Path, use: str, note: Callable[[str], None] = lambda message: None
    ) -> None:
        """Take the folder; ConflictError that names process and host where another one holds it.

        `use` is what for, in that message: "a run". `note` says that this process waits to see whether a process on
        another machine still lives. OSError where the disk refuses.
        """
        path = folder / LOCK
        self._owner = owner_name()
        is_locked = True
        try:
            handle = take_lock(path)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            # without locks the file's text is all there is
            is_locked = False
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if handle is None:
            raise _conflict(folder, use, _owner_in(path))
        try:
            holder = _owner_in(path)
            ended = is_dead(holder) or (is_locked and _is_of_this_kernel(holder))
            if holder and not ended and _is_touched(path, holder, note):
                raise _conflict(folder, use, holder)
            os.ftruncate(handle, 0)
            os.pwrite(handle, self._owner.encode(), 0)
        except BaseException:
            os.close(handle)
            raise
        self._stop = threading.Event()
        threading.Thread(
            target=_beat, args=(os.dup(handle), self._stop), name="folder-lock", daemon=True
        ).start()
        self._finalizer = weakref.finalize(
            self, _release, path, handle, self._owner, self._stop, os.getpid()
        )

    def release(self) -> None:
        """Free the folder and remove the lock file; a second call does nothing."""
        self._finalizer()


def _release(path: Path, handle: int, owner: str, stop: threading.Event, process: int) -> None:
    # a forked child inherits the finalizer, not the folder
    if os.getpid() != process:
        return
    stop.set()
    if _owner_in(path) == owner:
        path.unlink(missing_ok=True)
    # the thread's copy of the descriptor may live a moment longer
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)


def _beat(handle: int, stop: threading.Event) -> None:
    try:
        while not stop.wait(BEAT_SECONDS):
            os.utime(handle)
    except OSError:
        pass  # a full or lost disk is for the run's own writes to tell
    finally:
        os.close(handle)


def _is_of_this_kernel(owner: str) -> bool:
    """Whether an owner ran on this kernel, whose locks it would hold still; containers on it have other names."""
    parts, own = owner.split("/"), owner_name().split("/")
    return len(parts) == len(own) and bool(own[2]) and parts[2] == own[2]


def _is_touched(path: Path, owner: str, note: Callable[[str], None]) -> bool:
    """Watch whether the holder on another machine still touches the file: by change alone, as clocks may differ."""
    note(
        f"{path.parent} was in use by {_named(owner)}: waiting {WATCH_SECONDS:g} s to see whether that still runs"
    )
    before, until = _touched_at(path), time.monotonic() + WATCH_SECONDS
    while time.monotonic() < until:
        time.sleep(WATCH_SECONDS / 45)
        if _touched_at(path) != before:
            return True
    return False


def _touched_at(path: Path) -> int:
    # NFS asks the server for the time when a file is opened, and may answer `stat` from its memory
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_mtime_ns


def _conflict(folder: Path, use: str, owner: str) -> ConflictError:
    return ConflictError(
        f"{folder} is in use by {use}, {_named(owner)}: wait until it ends or stop it, or give another folder"
    )


def _named(owner: str) -> str:
    parts = owner.split("/")
    return f"process {parts[3]} on {parts[0]}" if len(parts) == 6 else "another process"


def _owner_in(path: Path) -> str:
    try:
        return path.read_bytes()[:MAX_OWNER].decode(errors="replace")
    except OSError:
        return ""
