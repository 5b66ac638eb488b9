"""Registering images: what is given, what of it is there already, and the rows of the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from labelstore.catalogue.digests import insert_rows, update_rows
from labelstore.catalogue.image_blocks import BLOCK_ROWS, blank_columns, damaged, pack
from labelstore.catalogue.image_columns import block_columns, rows_by_key
from labelstore.catalogue.tables import image_blocks
from labelstore.errors import ConflictError, UsageError

Columns = tuple[list[str], list[int], list[int], list[int]]
"""Keys, class ids, sizes in bytes and times of change of images that are registered together."""
_NAMES = ("key", "class_id", "size", "mtime_ns")


def plain_columns(
    keys: Sequence[str],
    class_ids: Sequence[int] | NDArray[Any],
    sizes: Sequence[int] | NDArray[Any],
    mtimes_ns: Sequence[int] | NDArray[Any],
) -> Columns:
    """What was given as plain values; UsageError unless of one length, ConflictError for a key given twice."""
    count = len(keys)
    if not count == len(class_ids) == len(sizes) == len(mtimes_ns):
        raise UsageError(
            f"{count} keys, {len(class_ids)} classes, {len(sizes)} sizes, {len(mtimes_ns)} times: give one each "
            "per image"
        )
    names = [str(key) for key in keys]
    if len(set(names)) != count:
        raise ConflictError("an image key was given twice: keys are paths and must be unique")
    return names, _ints(class_ids), _ints(sizes), _ints(mtimes_ns)


def num_registered(conn: Connection, first: int, end: int, given: Columns) -> int:
    """How many of the given images lie in rows `first` to `end` already; ConflictError for any other."""
    keys, class_ids, sizes, _ = given
    if end - first > len(keys):
        raise ConflictError(
            f"{end - first} images are registered from row {first} on, {len(keys)} were given: a store never shrinks"
        )
    # Shorter where registering was interrupted
    for start, stop in _in_blocks(first, end):
        there = block_columns(conn, start // BLOCK_ROWS)
        if there is None:
            raise damaged(f"has no row {start // BLOCK_ROWS}")
        within = slice(start % BLOCK_ROWS, start % BLOCK_ROWS + stop - start)
        held = zip(*(there[name][within].tolist() for name in _NAMES), strict=True)
        part = zip(*(values[start - first : stop - first] for values in given), strict=True)
        for at, (row, image) in enumerate(zip(held, part, strict=True), start - first):
            if row != image:
                raise ConflictError(
                    f"image {first + at} is registered as {row[0]!r} (class {row[1]}, {row[2]} bytes), not "
                    f"{keys[at]!r} (class {class_ids[at]}, {sizes[at]} bytes): use the folder that the store was made "
                    "from"
                )
    return end - first


def insert_images(conn: Connection, first: int, given: Columns) -> None:
    """Write images from row `first` on, which lies behind all others."""
    rows = []
    values: tuple[Sequence[Any], ...] = given
    for start, stop in _in_blocks(first, first + len(given[0])):
        block, at = divmod(start, BLOCK_ROWS)
        columns = blank_columns(at + stop - start)
        for name, column in zip(_NAMES, values, strict=True):
            columns[name][at:] = column[start - first : stop - first]
        columns["free"][at:] = False
        before = block_columns(conn, block) if at else None
        if before is None:
            rows.append(pack(block, columns))
            continue
        for name, held in before.items():
            columns[name][: len(held)] = held
        update_rows(conn, image_blocks, [pack(block, columns)])
    insert_rows(conn, image_blocks, rows)


def refuse_known(conn: Connection, keys: list[str]) -> None:
    """ConflictError for a key that is in the store already."""
    if known := rows_by_key(conn, keys):
        raise ConflictError(
            f"image {min(known)!r} is in the store already, at another row: keys must be unique"
        )


def _in_blocks(first: int, end: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the rows from `first` to `end`, block by block."""
    while first < end:
        stop = min(end, (first // BLOCK_ROWS + 1) * BLOCK_ROWS)
        yield first, stop
        first = stop


def _ints(values: Sequence[int] | NDArray[Any]) -> list[int]:
    plain: list[int] = np.asarray(values, dtype=np.int64).tolist()
    return plain
