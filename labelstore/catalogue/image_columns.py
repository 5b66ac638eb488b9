"""The table of images as NumPy columns over image rows, and where it ends."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, func, select

from labelstore.catalogue.digests import Row, num_rows, verified_batches
from labelstore.catalogue.tables import images
from labelstore.errors import DamagedShard
from labelstore.images import check_keys

DIGEST_BYTES = 16
MAX_FREE_ROWS = 1 << 22
"""Most rows without an image that a catalogue may have: every row takes memory."""
NO_IMAGE = "no image has this row"
"""What the column `bad` says of such a row."""


def end_row(conn: Connection) -> int:
    """One more than the last image's row; more than there are images where rows were left free.

    DamagedShard for a number that no catalogue of so many images has.
    """
    last = conn.execute(select(func.max(images.c.image))).scalar()
    count = num_rows(conn, images)
    end = 0 if last is None else last + 1
    if not isinstance(end, int) or not (last is None or count <= end <= count + MAX_FREE_ROWS):
        raise DamagedShard(
            f"catalogue table images has {count} images and row {last}: restore the catalogue from a copy"
        )
    return end


def image_columns(conn: Connection) -> dict[str, NDArray[Any]]:
    """The table as columns over image rows, checked against its digest.

    `key` and `bad` object (N,), `class_id` int32, `width` and `height` int32 with -1 where unknown,
    `digest` uint8 (N, 16) with `has_digest` bool, `size` and `mtime_ns` int64 with -1 where
    unknown. `free` is True for rows that no image has (see `ImageTable.append`): their key is empty, their
    class -1, and `bad` says so.
    """
    count = num_rows(conn, images)
    # before memory is asked for: the number is only what somebody wrote into another table
    there = conn.execute(select(func.count()).select_from(images)).scalar()
    if there != count:
        raise DamagedShard(
            f"catalogue table images has {there} rows where {count} were written: "
            "restore the catalogue from a copy"
        )
    total = end_row(conn)
    columns: dict[str, NDArray[Any]] = {
        "key": np.full(total, "", dtype=object),
        "class_id": np.full(total, -1, dtype=np.int32),
        "width": np.full(total, -1, dtype=np.int32),
        "height": np.full(total, -1, dtype=np.int32),
        "digest": np.zeros((total, DIGEST_BYTES), dtype=np.uint8),
        "has_digest": np.zeros(total, dtype=bool),
        "size": np.full(total, -1, dtype=np.int64),
        "mtime_ns": np.full(total, -1, dtype=np.int64),
        "bad": np.full(total, NO_IMAGE if total > count else None, dtype=object),
        "free": np.ones(total, dtype=bool),
    }
    try:
        for part in verified_batches(conn, images):
            _fill(columns, part)
    except (TypeError, ValueError, OverflowError, IndexError):
        raise DamagedShard(
            "catalogue table images holds values of the wrong type: restore the catalogue from a copy"
        ) from None
    return columns


def _fill(columns: dict[str, NDArray[Any]], rows: list[Row]) -> None:
    if not rows:
        return
    numbers, keys, class_ids, widths, heights, digests, sizes, mtimes, bad = zip(*rows, strict=True)
    check_keys(keys)
    first, last = numbers[0], numbers[-1]
    at: slice | NDArray[np.int64] = slice(first, last + 1)
    if first < 0 or last - first + 1 != len(rows):
        at = np.array(numbers, np.int64)
        if at.min() < 0:
            raise ValueError(at.min())
    columns["free"][at] = False
    columns["key"][at] = keys
    columns["bad"][at] = bad
    columns["class_id"][at] = class_ids
    for name, values in (
        ("width", widths),
        ("height", heights),
        ("size", sizes),
        ("mtime_ns", mtimes),
    ):
        columns[name][at] = [-1 if value is None else value for value in values]
    blank = bytes(DIGEST_BYTES)
    joined = b"".join(blank if digest is None else digest for digest in digests)
    columns["digest"][at] = np.frombuffer(joined, np.uint8).reshape(-1, DIGEST_BYTES)
    columns["has_digest"][at] = [digest is not None for digest in digests]
