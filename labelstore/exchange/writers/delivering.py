"""A target that is whole or is not there: built under a hidden name beside it, made durable, then renamed.

A process that is killed leaves `.NAME.PID-RANDOM.tmp` beside the target, never the target.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from labelstore.arrays.durable import TEMPORARY_SUFFIX, fsync_folder, fsync_path, storage_errors
from labelstore.errors import ConflictError

MANY_FILES = 1000
"""From so many on, one `sync` of the machine stands for that of every file, which alone is a flush of the disk: 3
ms each, an hour for a million. It waits as long, and does not say what failed; a disk that is full or not ours has
said so before."""
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS)


def refuse_existing(target: Path) -> None:
    """ConflictError where something has that name already, a dangling link too."""
    if os.path.lexists(target):
        raise ConflictError(f"{target} exists already: give another path, or remove it first")


@contextlib.contextmanager
def delivered(target: Path, *, is_file: bool) -> Iterator[Path]:
    """A hidden name to build at: a new folder, or a file still to be made. Its content is `target` afterwards.

    Where the block raises, it is removed. ConflictError where `target` came to be meanwhile, StorageError where
    the disk refuses.
    """
    refuse_existing(target)
    mark = f"{os.getpid()}-{secrets.token_hex(4)}"
    building = target.with_name(f".{target.name}.{mark}{TEMPORARY_SUFFIX}")
    with storage_errors(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if not is_file:
                building.mkdir()
            yield building
            _make_durable(building)
            _give_name(building, target, is_file=is_file)
            fsync_folder(target.parent)
        finally:
            with contextlib.suppress(OSError):
                building.unlink() if is_file else shutil.rmtree(building)


def _give_name(building: Path, target: Path, *, is_file: bool) -> None:
    """Rename without replacing anything (a folder may replace an empty one)."""
    if is_file:
        try:
            os.link(building, target)
            return
        except FileExistsError:
            refuse_existing(target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
    refuse_existing(target)
    building.rename(target)


def _make_durable(building: Path) -> None:
    if building.is_file():
        fsync_path(building)
        return
    many = sum(len(files) for _, _, files in os.walk(building)) >= MANY_FILES
    if many:
        os.sync()
    for place, _, files in os.walk(building):
        for name in [] if many else files:
            fsync_path(Path(place, name))
        fsync_folder(Path(place))
