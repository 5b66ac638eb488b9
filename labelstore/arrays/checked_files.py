"""Reading files with the ledger in hand: any difference from it is Damage, and no link or pipe is followed.

A chunk is good when the crc32c computed over it and the one in the ledger agree; an index
or a header that lies can therefore make a read fail, never make it wrong.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.arrays.object_storage import BucketFile
from labelstore.arrays.shard_files import ShardFile
from labelstore.arrays.sharding import EMPTY, Damage, index_bytes, unpack_index
from labelstore.errors import DamagedShard, StorageError

MAX_METADATA_BYTES = 64 << 20
"""Largest metadata file that is read: a larger one is none that this package writes."""

_HASH_BYTES = 1 << 22
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""No link followed, and no waiting on a pipe that someone put there."""


def read_attributes(path: Path, *keys: str) -> dict[str, Any]:
    """The JSON object at `keys` inside a metadata file. DamagedShard if missing, too large or unreadable."""
    data = read_metadata(path)
    if data is None:
        raise DamagedShard(f"{path}: is missing; run `labelstore.verify`")
    try:
        value = json.loads(data)
        for key in keys:
            value = value[key]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        raise DamagedShard(f"{path}: is not metadata that this store wrote") from None
    if not isinstance(value, dict):
        raise DamagedShard(f"{path}: its attributes are not a JSON object")
    return value


def read_metadata(path: Path) -> bytes | None:
    """The bytes of a metadata file; None where there is no regular file. DamagedShard for one that is too large."""
    try:
        return read_limited(path, MAX_METADATA_BYTES)
    except Damage as damage:
        raise DamagedShard(f"{path}: {damage}") from None


def read_limited(path: Path, most: int) -> bytes | None:
    """The bytes of a regular file, None where there is none: no link is followed, and no pipe waited for.

    Damage for a file of more than `most` bytes, which is not read; StorageError for one that cannot be read.
    """
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
            return None
        raise StorageError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return None
        if status.st_size > most:
            raise Damage(f"has {status.st_size:,} bytes, more than the {most:,} that are read")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            # so many and no more: memory for all that are asked for is taken first
            return file.read(status.st_size)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror})") from error
    finally:
        os.close(descriptor)


@contextmanager
def opened(path: Path, record: ShardFile) -> Iterator[int]:
    """A descriptor of a regular file of the recorded size. Damage or StorageError otherwise."""
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
    except OSError as error:
        match error.errno:
            case errno.ENOENT | errno.ENOTDIR:
                raise Damage("is missing") from None
            case errno.ELOOP | errno.ENXIO:
                raise Damage("is not a regular file") from None
            case _:
                raise StorageError(f"{path}: cannot be opened ({error.strerror})") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Damage("is not a regular file")
        if status.st_size != record.size:
            raise Damage(f"has {status.st_size} bytes where the ledger says {record.size}")
        yield descriptor
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror})") from error
    finally:
        os.close(descriptor)


def read_chunks(
    descriptor: int | BucketFile,
    record: ShardFile,
    checksums: Mapping[int, int | None],
    num_chunks: int,
    checksum_of: Callable[[NDArray[np.uint8]], int | None],
) -> Iterator[tuple[int, NDArray[np.uint8] | None]]:
    """(number, bytes) of the chunks asked for, each the one that the ledger means; None if empty.

    `checksums` has the ledger's crc32c per chunk number asked for; `num_chunks` counts all chunks in
    the file's index; `checksum_of` computes a chunk's crc32c. Raises Damage.
    """
    size = index_bytes(num_chunks)
    end = record.size - size
    if end < 0:
        raise Damage(f"has {record.size} bytes, too few for an index of {num_chunks} chunks")
    index = unpack_index(_pread(descriptor, size, end), end)
    wanted = [number for number, checksum in checksums.items() if checksum is not None]
    for run in _runs(index, wanted):
        start = index[run[0]][0]
        last_offset, last_length = index[run[-1]]
        data = np.frombuffer(_pread(descriptor, last_offset + last_length - start, start), "u1")
        for number in run:
            offset, length = index[number]
            chunk = data[offset - start : offset - start + length]
            if checksum_of(chunk) != checksums[number]:
                raise Damage(f"chunk {number} is not the one that was committed (crc32c)")
            yield number, chunk
    for number, checksum in checksums.items():
        if checksum is None:
            if index[number][1] != EMPTY:
                raise Damage(f"chunk {number} is stored where the ledger has it empty")
            yield number, None


def _runs(index: Sequence[tuple[int, int]], numbers: Iterable[int]) -> Iterator[list[int]]:
    """Group chunk numbers whose bytes follow each other without a gap: one read for each run."""
    run: list[int] = []
    for number in numbers:
        offset, length = index[number]
        if length == EMPTY:
            raise Damage(f"chunk {number} is empty where the ledger has one")
        if run and sum(index[run[-1]]) != offset:
            yield run
            run = []
        run.append(number)
    if run:
        yield run


def read_all(descriptor: int, size: int) -> bytes:
    """All bytes of a file of that size; Damage if it is shorter."""
    return _pread(descriptor, size, 0)


def _pread(descriptor: int | BucketFile, size: int, offset: int) -> bytes:
    if not isinstance(descriptor, int):
        data = descriptor.read_range(offset, size)
        if len(data) != size:
            raise Damage(f"ends at byte {offset + len(data)}, before a chunk does")
        return data
    data = os.pread(descriptor, size, offset)
    while len(data) < size:
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            raise Damage(f"ends at byte {offset + len(data)}, before a chunk does")
        data += more
    return data


def check_file(path: Path, record: ShardFile, *, digest: bool) -> None:
    """Raise Damage unless the file is there, regular, of the recorded size and, if asked, digest."""
    with opened(path, record) as descriptor:
        if not digest:
            return
        sha256 = hashlib.sha256()
        while data := os.read(descriptor, _HASH_BYTES):
            sha256.update(data)
        if sha256.hexdigest() != record.sha256:
            raise Damage("its SHA-256 is not the ledger's")
