"""Files that are on disk when we say so: temporary name, length check, fsync; then rename, fsync folder.

Steps 3 and 4 of the write protocol. `stage` does everything but the rename; `publish` renames, which the
catalogue calls inside the commit transaction. A process killed in between leaves temporary files only,
named `.NAME.PID-RANDOM.tmp`, which `gc` removes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn, Self

from labelstore.errors import LabelStoreError, StorageError, UsageError, check_utf8

TEMPORARY_SUFFIX = ".tmp"
STORE_MARKS = (("catalogue.db", "catalogue.url"), ("arrays.zarr", "arrays"))
"""A folder that holds one of each is a store, which only its own commands write into (names as in store/opening.py)."""


def is_temporary(name: str) -> bool:
    """Whether a file name is one that `write_durably` makes.

    >>> is_temporary(".c.0.0.0.412-9f86d081.tmp"), is_temporary("c.0.0.0")
    (True, False)
    """
    return name.startswith(".") and name.endswith(TEMPORARY_SUFFIX)


def write_durably(path: Path, data: bytes) -> Path:
    """Write `data` beside `path` under a temporary name and fsync it; returns that name.

    Missing parent folders are made, durably. StorageError names `path`; nothing is left behind then.
    """
    make_folders(path.parent)
    temporary = path.with_name(
        f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
    )
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(temporary, flags, 0o666)
    except OSError as error:
        _refuse(error, path)
    try:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            size = os.fstat(descriptor).st_size
            if size != len(data):
                raise OSError(errno.EIO, f"{size} bytes arrived of {len(data)}")
            fsync_file(descriptor)
        finally:
            # a network disk may report a failed write only here
            os.close(descriptor)
    except OSError as error:
        _remove_quietly(temporary)
        _refuse(error, path)
    except BaseException:
        _remove_quietly(temporary)
        raise
    return temporary


def publish(temporary: Path, final: Path) -> None:
    """Give a staged file its name; `fsync_folder` of its folder makes that durable."""
    try:
        temporary.replace(final)
    except OSError as error:
        _refuse(error, final)


def fsync_file(descriptor: int) -> None:
    """Make what was written to an open file durable, or the names in an open folder."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        # on macOS fsync stops at the drive's cache, which a power cut empties
        try:
            fcntl.fcntl(descriptor, full)
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY):
                raise
        else:
            return
    os.fsync(descriptor)


def fsync_path(path: Path, flags: int = 0) -> None:
    """Make a file durable that was written and closed. OSError where the disk refuses."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        fsync_file(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    with storage_errors(folder):
        fsync_path(folder, os.O_DIRECTORY)


def make_folders(folder: Path) -> None:
    """Make a folder and its missing parents, each made durable in its own parent."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        if folder == folder.parent:
            break
        folder = folder.parent
    for new in reversed(missing):
        try:
            new.mkdir(exist_ok=True)
        except OSError as error:
            _refuse(error, new)
        fsync_folder(new.parent)


def write_file(path: Path, data: bytes) -> None:
    """Stage, publish and make durable one file: a reader sees the old bytes or the new, never a part."""
    with StagedFiles() as staged:
        staged.stage(path, data)
        staged.publish()


def check_place(path: Path, parameter: str = "out") -> None:
    """Before any work for a file: StorageError where its folder is not there, UsageError where it is a folder
    itself."""
    if path == Path():
        raise UsageError(f"`{parameter}` is empty, or the folder that this runs in: name a file")
    check_new_place(path, f"`{parameter}`")
    if path.is_dir():
        raise UsageError(f"`{parameter}={path}` is a folder: name a file in it")
    if not path.parent.is_dir():
        raise StorageError(
            f"`{parameter}={path}`: there is no folder {path.parent}: make it first, or name a file in another"
        )


def check_new_place(path: Path, what: str = "") -> None:
    """UsageError for a place where nothing new may be: one that is a store or lies in one, or whose name is not UTF-8.

    StorageError where it cannot be made: below a file, or in a folder that this user may not write to. In a store,
    what is frozen would not be what its manifest says, and what the store does not know of goes when it is removed.
    """
    whole = path.absolute()
    check_utf8(str(whole))
    # a folder that is made on the way need not be one that the place lies in: `not-there/../place`
    made = [new for new in whole.parents if ".." in whole.parts and not os.path.lexists(new)]
    for new in (whole, *made):
        # neither raises where a link leads in circles or a folder may not be looked into
        place = Path(os.path.realpath(new))
        for folder in (place, *place.parents):
            if all(any(os.path.exists(folder / name) for name in names) for names in STORE_MARKS):  # noqa: PTH110
                inside = f"is inside the store {folder}" if folder != place else "is a store"
                where = inside if new is whole else f"leads through the store {folder}"
                raise UsageError(f"{what} {path} {where}: give a path outside".lstrip())
    _check_room_for(whole)


def _check_room_for(path: Path) -> None:
    """StorageError where the folder that a new file or folder needs cannot be written to."""
    if os.path.lexists(path) and not path.is_file() and not path.is_dir():
        return  # a device or a pipe is written to as it is
    above = path
    while not above.is_dir():
        if above != path and os.path.lexists(above):
            _refuse(OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)), above)
        above = above.parent
    if not os.access(above, os.W_OK | os.X_OK):
        readonly = os.statvfs(above).f_flag & os.ST_RDONLY
        code = errno.EROFS if readonly else errno.EACCES
        _refuse(OSError(code, os.strerror(code)), path)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError inside the block into a StorageError that names `path`."""
    try:
        yield
    except LabelStoreError:
        # some are an OSError too, such as StoreNotFound
        raise
    except OSError as error:
        _refuse(error, path)


class StagedFiles:
    """Files written and fsynced under temporary names, waiting for their commit.

    A context manager: whatever is not published when the block ends is removed.
    """

    def __init__(self) -> None:
        self._waiting: dict[Path, Path] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.discard()

    @property
    def paths(self) -> tuple[Path, ...]:
        """Final names of the files that wait."""
        return tuple(self._waiting)

    def stage(self, path: Path, data: bytes) -> None:
        """Write `data` for `path`; a file staged for the same path before is dropped."""
        temporary = write_durably(path, data)
        previous = self._waiting.pop(path, None)
        self._waiting[path] = temporary
        if previous is not None:
            _remove_quietly(previous)

    def publish(self) -> None:
        """Rename every file to its name, then fsync their folders. StorageError names the file.

        After an error, files renamed so far keep their names: the ledger does not name them, so they
        are orphans that the next holder of the lease replaces.
        """
        publish_together([self])

    def discard(self) -> None:
        """Remove what was not published."""
        while self._waiting:
            _, temporary = self._waiting.popitem()
            _remove_quietly(temporary)


def publish_together(several: Sequence[StagedFiles]) -> None:
    """`StagedFiles.publish` of several: all renames, then each folder's fsync once."""
    folders: dict[Path, None] = {}
    for staged in several:
        folders |= dict.fromkeys(path.parent for path in staged._waiting)
        for path, temporary in list(staged._waiting.items()):
            publish(temporary, path)
            del staged._waiting[path]
    for folder in folders:
        fsync_folder(folder)


def _remove_quietly(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _refuse(error: OSError, path: Path) -> NoReturn:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            text = f"no space left on the disk of {path}; free some and run the command again"
        case errno.EROFS | errno.EACCES | errno.EPERM:
            text = f"{path}: not allowed to write there ({error.strerror})"
        case errno.EISDIR | errno.ENOTDIR | errno.EEXIST:
            text = f"{path}: something else has its place or that of a folder above it ({error.strerror}): move it away"
        case _:
            text = f"{path}: the disk refused ({error.strerror or error})"
    raise StorageError(text) from error
