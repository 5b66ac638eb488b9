"""Why a foreign file cannot be used: raised where it is noticed, and given the file's name where that is known.

Bytes are read and inflated up to a bound that the caller knows.
"""

from __future__ import annotations

import io
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from labelstore.errors import RejectedInput, StorageError

GZIP = 16 + zlib.MAX_WBITS
"""`wbits` of `inflated` for a gzip file."""
MAX_FILE_BYTES = 128 << 20
"""Largest label file that is read whole: SRe2L's largest batches are 45 MB."""


class Refused(ValueError):
    """One reason, without the file's name: what is there, and what would be allowed."""


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Every `Refused` of the block as RejectedInput that names the file."""
    try:
        yield
    except Refused as reason:
        raise RejectedInput(f"{path}: {reason}") from None
    except MemoryError:
        raise RejectedInput(f"{path}: needs more memory than there is") from None


def read_bytes(path: Path, most: int = MAX_FILE_BYTES) -> bytes:
    """A whole file. Refused where it is missing, no plain file, empty or larger than `most` bytes."""
    try:
        with io.FileIO(path, "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Refused("is no plain file")
            if status.st_size > most:
                raise Refused(f"is larger than {most >> 20} MiB, no label file of this kind is")
            data = file.read(status.st_size)
    except (FileNotFoundError, NotADirectoryError):
        raise Refused("is missing") from None
    except IsADirectoryError:
        raise Refused("is a folder") from None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    if not data:
        raise Refused("is empty")
    return data


def inflated(data: bytes | memoryview, most: int, *, wbits: int = zlib.MAX_WBITS) -> bytes:
    """Inflate zlib data, or what else `wbits` says, in memory for `most` bytes and no more.

    Refused for data that does not inflate, ends too early, has more than `most` bytes inside or others behind its end.
    """
    machine = zlib.decompressobj(wbits)
    try:
        plain = machine.decompress(data, most + 1)
    except zlib.error as error:
        raise Refused(f"does not inflate ({error})") from None
    if len(plain) > most:
        raise Refused(f"holds more than {most} bytes when inflated")
    if not machine.eof or machine.unused_data:
        raise Refused("is cut off, or has bytes behind its end")
    return plain


def _without_waiting(path: str, flags: int) -> int:
    """An opener that does not wait for a pipe's writer, so that a pipe can be refused."""
    return os.open(path, flags | os.O_NONBLOCK)


def shown(value: object, most: int = 60) -> str:
    """A name out of a file, fit to be printed: no control characters, at most so many letters."""
    text = "".join(c if c.isprintable() else "?" for c in str(value)[: most + 1])
    return text if len(text) <= most else text[:most] + "..."
