"""Registering images: what is given, what of it is there already, and the rows of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, func, select

from labelstore.catalogue.digests import insert_tuples
from labelstore.catalogue.tables import images
from labelstore.errors import ConflictError, UsageError

Columns = tuple[list[str], list[int], list[int], list[int]]
"""Keys, class ids, sizes in bytes and times of change of images that are registered together."""


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


def num_registered(conn: Connection, first: int, given: Columns) -> int:
    """How many of the given images lie from row `first` on already; ConflictError for any other."""
    there = conn.execute(
        select(images.c.key, images.c.class_id, images.c.size, images.c.mtime_ns)
        .where(images.c.image >= first)
        .order_by(images.c.image)
    ).all()
    keys, class_ids, sizes, _ = given
    if len(there) > len(keys):
        raise ConflictError(
            f"{len(there)} images are registered from row {first} on, {len(keys)} were given: a store never shrinks"
        )
    # Shorter where registering was interrupted
    for at, (row, image) in enumerate(zip(there, zip(*given, strict=True), strict=False)):
        if tuple(row) != image:
            raise ConflictError(
                f"image {first + at} is registered as {row[0]!r} (class {row[1]}, {row[2]} bytes), not {keys[at]!r} "
                f"(class {class_ids[at]}, {sizes[at]} bytes): use the folder that the store was made from"
            )
    return len(there)


def insert_images(conn: Connection, first: int, given: Columns) -> None:
    """Write images from row `first` on."""
    insert_tuples(
        conn,
        images,
        # In the table's order: image, key, class, width, height, digest, size, time, bad
        (
            (row, key, label, None, None, None, size, time, None)
            for row, (key, label, size, time) in enumerate(zip(*given, strict=True), first)
        ),
    )


def refuse_known(conn: Connection, keys: list[str]) -> None:
    """ConflictError for a key that is in the store already."""
    for start in range(0, len(keys), 500):
        query = select(func.min(images.c.key)).where(images.c.key.in_(keys[start : start + 500]))
        if (known := conn.execute(query).scalar()) is not None:
            raise ConflictError(
                f"image {known!r} is in the store already, at another row: keys must be unique"
            )


def _ints(values: Sequence[int] | NDArray[Any]) -> list[int]:
    plain: list[int] = np.asarray(values, dtype=np.int64).tolist()
    return plain
