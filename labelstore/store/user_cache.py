"""The user's cache folder: what can always be made again, such as the table of images of a large store as columns.

Checking a million rows takes seconds, and every command would. A file of the cache is named by the store and by the
digest that the catalogue keeps of the table, so a table that has changed is never met again. Only tables that were read
and found sound are kept, and only those that are settled: every image decoded or left out. A file that is damaged or
cannot be written makes a command slower, never wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.arrays.durable import make_folders, write_file
from labelstore.catalogue import Catalogue
from labelstore.catalogue.image_blocks import ImageColumns, is_given
from labelstore.errors import RejectedInput, StorageError
from labelstore.images import check_keys

CACHE_VARIABLE = "LABELSTORE_CACHE"


def default_cache() -> Path:
    """LABELSTORE_CACHE, or the user's cache folder."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "labelstore"


MIN_ROWS = 100_000
"""Smaller tables are read in about a second."""
FORMAT = 2
DIGEST_BYTES = 32
"""A file begins with the digest of its head, the length of that, and the head: JSON that says where each column lies
and what its digest is. A command reads and checks the columns that it needs."""
_LENGTH_BYTES = 8
_MOST_HEAD_BYTES = 1 << 16
_PLAIN = {
    "class_id": "<i4",
    "width": "<i4",
    "height": "<i4",
    "digest": "|u1",
    "has_digest": "|b1",
    "size": "<i8",
    "mtime_ns": "<i8",
    "free": "|b1",
}
_SEPARATOR = "\n"
_NOT_OURS = (
    OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, RejectedInput,
)  # fmt: skip
"""What bytes raise that this module did not write."""


def image_columns(
    catalogue: Catalogue, *, min_rows: int = MIN_ROWS, cache: Path | None = None
) -> ImageColumns:
    """`ImageTable.columns`, from the cache where the same table was read before."""
    with catalogue.reading():
        num_images, num_rows = catalogue.images.counts()
        if num_images < min_rows:
            return catalogue.images.columns()
        digest = catalogue.images.digest()
    folder = (cache or default_cache()) / "images"
    path = folder / f"{catalogue.uuid}-{digest}.columns"
    kept = _kept(path, num_rows, catalogue.images.columns)
    if kept is not None:
        return kept
    columns = catalogue.images.columns()
    # another process may have changed the table between the two: then the name would be wrong
    if _is_settled(columns) and catalogue.images.digest() == digest:
        _write(path, columns, catalogue.uuid)
    return columns


def _is_settled(columns: ImageColumns) -> bool:
    return bool((columns["has_digest"] | is_given(columns["bad"])).all())


def _write(path: Path, columns: ImageColumns, uuid: str) -> None:
    keys = _SEPARATOR.join(columns["key"])
    if keys.count(_SEPARATOR) != max(0, len(columns["key"]) - 1):
        return
    reasons = {str(row): why for row, why in enumerate(columns["bad"]) if why is not None}
    parts = {name: np.ascontiguousarray(columns[name]).tobytes() for name in _PLAIN}
    parts |= {"key": keys.encode(), "bad": json.dumps(reasons).encode()}
    places, end = {}, 0
    for name, data in parts.items():
        places[name] = [end, len(data), _digest(data).hex()]
        end += len(data)
    head = json.dumps({"format": FORMAT, "rows": len(columns["free"]), "parts": places}).encode()
    length = len(head).to_bytes(_LENGTH_BYTES, "little")
    with suppress(StorageError, OSError):
        make_folders(path.parent)
        write_file(path, b"".join([_digest(head), length, head, *parts.values()]))
        for older in path.parent.glob(f"{uuid}-*"):
            if older != path:
                older.unlink(missing_ok=True)


def _kept(path: Path, rows: int, table: Callable[[], ImageColumns]) -> ImageColumns | None:
    """The columns of a file, None where it is not there or not what `_write` wrote.

    A column that is not what `_write` wrote is that of `table()`.
    """
    try:
        with path.open("rb") as file:
            digest = file.read(DIGEST_BYTES)
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            text = file.read(min(length, _MOST_HEAD_BYTES))
        head = json.loads(text) if _digest(text) == digest else {}
        if (head.get("format"), head.get("rows")) != (FORMAT, rows):
            return None
        places = dict(head["parts"])
    except _NOT_OURS:
        return None
    begin, read_table = DIGEST_BYTES + _LENGTH_BYTES + length, lru_cache(1)(table)

    def read(name: str) -> NDArray[Any]:
        try:
            column = _column(name, _part(path, begin, places[name]), rows)
            if name == "key" and ((column == "") != read("free")).any():
                raise ValueError(name)
            return column
        except _NOT_OURS:
            return read_table()[name]

    return ImageColumns(read)


def _part(path: Path, begin: int, place: tuple[int, int, str]) -> bytearray:
    """The bytes of one column; ValueError where they are not what was written."""
    offset, size, digest = place
    with path.open("rb") as file:
        if not 0 <= size <= os.fstat(file.fileno()).st_size:
            raise ValueError(size)
        file.seek(begin + offset)
        data = bytearray(size)
        file.readinto(data)
    if _digest(data).hex() != digest:
        raise ValueError(path.name)
    return data


def _digest(data: bytes | bytearray) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def _column(name: str, data: bytearray, rows: int) -> NDArray[Any]:
    """A column (rows, ...) from its bytes; ValueError or RejectedInput where they are none."""
    if name == "key":
        keys = data.decode().split(_SEPARATOR)
        check_keys(list(filter(None, keys)))
        return np.array(keys, dtype=object).reshape(rows)
    if name == "bad":
        column = np.full(rows, None, dtype=object)
        for row, why in json.loads(data).items():
            column[range(rows)[int(row)]] = str(why)
        return column
    return np.frombuffer(data, _PLAIN[name]).reshape((rows, 16) if name == "digest" else (rows,))
