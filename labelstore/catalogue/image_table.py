"""The images: one row each, numbered in the order of registration, facts filled in as shards decode them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Connection, func, literal, select

from labelstore.catalogue.digests import Row, insert_tuples, num_rows, update_rows, verified_batches
from labelstore.catalogue.records import ImageRow
from labelstore.catalogue.tables import images
from labelstore.errors import ConflictError, DamagedShard, UsageError
from labelstore.images import check_keys

DIGEST_BYTES = 16
MAX_FREE_ROWS = 1 << 22
"""Rows without an image that a catalogue may have: every row takes memory, whoever has it."""
NO_IMAGE = "no image has this row"
"""What the column `bad` says of such a row."""


def add_images(
    conn: Connection,
    keys: Sequence[str],
    class_ids: Sequence[int] | NDArray[Any],
    sizes: Sequence[int] | NDArray[Any],
    mtimes_ns: Sequence[int] | NDArray[Any],
    *,
    first_row: int | None = None,
) -> range:
    """Register images at the end of the table; returns their rows.

    `first_row` says where the caller believes the end to be. Images that lie from there on already,
    with the same key, class, size and time, are left as they are; anything else in the way is a
    ConflictError.
    """
    keys = [str(key) for key in keys]
    count = len(keys)
    if not count == len(class_ids) == len(sizes) == len(mtimes_ns):
        raise UsageError(
            f"{count} keys, {len(class_ids)} classes, {len(sizes)} sizes, {len(mtimes_ns)} times: give one each per image"
        )
    if len(set(keys)) != count:
        raise ConflictError("an image key was given twice: keys are paths and must be unique")
    end = end_row(conn)
    first = end if first_row is None else first_row
    if not 0 <= first <= end:
        raise UsageError(
            f"first row {first}: the catalogue has rows up to {end - 1} and these leave no gaps: give {end}"
        )
    there = conn.execute(
        select(images.c.key, images.c.class_id, images.c.size, images.c.mtime_ns)
        .where(images.c.image >= first)
        .order_by(images.c.image)
    ).all()
    if len(there) > count:
        raise ConflictError(
            f"{len(there)} images are registered from row {first} on, {count} were given: a store never shrinks"
        )
    plain = [_ints(class_ids), _ints(sizes), _ints(mtimes_ns)]
    for at, row in enumerate(there):
        if tuple(row) != (keys[at], plain[0][at], plain[1][at], plain[2][at]):
            raise ConflictError(
                f"image {first + at} is registered as {row[0]!r} (class {row[1]}, {row[2]} bytes), not {keys[at]!r} "
                f"(class {plain[0][at]}, {plain[1][at]} bytes): use the folder that the store was made from"
            )
    rest = range(len(there), count)
    if rest and end:
        _refuse_known(conn, [keys[at] for at in rest])
    classes, lengths, times = (column[rest.start :] for column in plain)
    numbered = zip(
        range(first + rest.start, first + count),
        keys[rest.start :],
        classes,
        lengths,
        times,
        strict=True,
    )
    insert_tuples(
        conn,
        images,
        # In the table's order: image, key, class, width, height, digest, size, time, bad
        (
            (row, key, label, None, None, None, size, time, None)
            for row, key, label, size, time in numbered
        ),
    )
    return range(first, first + count)


def append_images(
    conn: Connection,
    keys: Sequence[str],
    class_ids: Sequence[int] | NDArray[Any],
    sizes: Sequence[int] | NDArray[Any],
    mtimes_ns: Sequence[int] | NDArray[Any],
    *,
    multiple: int,
) -> range:
    """Register further images from the next row on that is a multiple of `multiple`; returns their rows.

    The rows in between stay free for good: shards that hold them are committed and say that nothing is there.
    ConflictError for a key that is in the store already.
    """
    end = end_row(conn)
    first = -(-end // multiple) * multiple
    free = first - num_rows(conn, images)
    if free > MAX_FREE_ROWS:
        raise UsageError(
            f"{free:,} rows would have no image, {MAX_FREE_ROWS:,} may: every growth begins a new image block, "
            "so add more images at once, or make a new store"
        )
    names = [str(key) for key in keys]
    if len(set(names)) != len(names):
        raise ConflictError("an image key was given twice: keys are paths and must be unique")
    _refuse_known(conn, names)
    rows = range(first, first + len(names))
    facts = (names, _ints(class_ids), _ints(sizes), _ints(mtimes_ns))
    insert_tuples(
        conn,
        images,
        (
            (row, key, label, None, None, None, size, time, None)
            for row, key, label, size, time in zip(rows, *facts, strict=True)
        ),
    )
    return rows


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


def image_rows(conn: Connection, wanted: Sequence[int] | None = None) -> list[ImageRow]:
    """All images in row order, or the wanted ones in the order asked for; UsageError for rows beyond the last."""
    names = [column.name for column in images.columns]
    rows: dict[int, ImageRow] = {}
    asked = None if wanted is None else set(wanted)
    for part in verified_batches(conn, images):
        for row in part:
            if asked is None or row[0] in asked:
                rows[row[0]] = ImageRow(**dict(zip(names, row, strict=True)))
    if wanted is None:
        return list(rows.values())
    if missing := [image for image in wanted if image not in rows]:
        raise UsageError(f"image {missing[0]}: the store has rows 0 to {end_row(conn) - 1}")
    return [rows[image] for image in wanted]


def image_columns(conn: Connection) -> dict[str, NDArray[Any]]:
    """The table as columns over image rows, checked against its digest.

    `key` and `bad` object (N,), `class_id` int32, `width` and `height` int32 with -1 where unknown,
    `digest` uint8 (N, 16) with `has_digest` bool, `size` and `mtime_ns` int64 with -1 where
    unknown. `free` is True for rows that no image has (see `append_images`): their key is empty, their
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


def find_images(conn: Connection, keys: Iterable[str]) -> dict[str, int]:
    """Rows of images by key; a key that is not there is left out."""
    wanted = list(dict.fromkeys(keys))
    found: dict[str, int] = {}
    for start in range(0, len(wanted), 500):
        part = wanted[start : start + 500]
        named = conn.execute(select(images.c.image).where(images.c.key.in_(part))).scalars().all()
        # Asked of the table and not of the index, whose row numbers may be damaged.
        there = select(images.c.key, images.c.image).where(images.c.image.in_(named))
        found |= {key: int(image) for key, image in conn.execute(there)}
    found = {key: found[key] for key in wanted if key in found}
    missing = [key for key in wanted if key not in found]
    # Past the index: a damaged page of it must not look like an image that is not there. The class
    # is asked for because the index does not have it, so that SQLite cannot scan the index instead.
    unindexed: ColumnElement[str] = images.c.key + literal("")
    for start in range(0, len(missing), 500):
        part = missing[start : start + 500]
        query = select(images.c.key, images.c.image, images.c.class_id).where(unindexed.in_(part))
        found |= {key: int(image) for key, image, _ in conn.execute(query)}
    return found


def record_image_facts(conn: Connection, facts: Iterable[tuple[int, int, int, bytes]]) -> None:
    """Write (image, width, height, digest) of decoded images; facts that are there must be the same.

    ConflictError where an image has changed since another shard decoded it.
    """
    given = {
        int(image): (int(width), int(height), bytes(digest))
        for image, width, height, digest in facts
    }
    for image, (_, _, digest) in given.items():
        if len(digest) != DIGEST_BYTES:
            raise UsageError(f"image {image}: a digest has {DIGEST_BYTES} bytes, not {len(digest)}")
    known = _facts(conn, list(given))
    if unknown := given.keys() - known.keys():
        raise UsageError(f"image {min(unknown)} is not in the catalogue")
    changes = []
    for image, fact in given.items():
        key, *there = known[image]
        if there == [None, None, None]:
            changes.append({"image": image, "width": fact[0], "height": fact[1], "digest": fact[2]})
        elif tuple(there) != fact:
            raise ConflictError(
                f"image {key!r} was {there[0]} x {there[1]} with digest {bytes(there[2] or b'').hex()} and is now "
                f"{fact[0]} x {fact[1]} with digest {fact[2].hex()}: use the folder that the store was made from"
            )
    update_rows(conn, images, changes)


def was_decoded(conn: Connection, image: int) -> bool:
    """True for an image that some shard has labels for, or had before a drop."""
    known = select(images.c.digest, images.c.bad).where(images.c.image == image)
    found = conn.execute(known).one_or_none()
    return found is not None and found[0] is not None and found[1] is None


def mark_bad(conn: Connection, image: int, reason: str) -> None:
    """Leave an image out for good, and say why."""
    update_rows(conn, images, [{"image": image, "bad": reason}])


def _facts(conn: Connection, rows: list[int]) -> dict[int, tuple[Any, ...]]:
    found: dict[int, tuple[Any, ...]] = {}
    columns = (images.c.image, images.c.key, images.c.width, images.c.height, images.c.digest)
    for start in range(0, len(rows), 500):
        for row in conn.execute(
            select(*columns).where(images.c.image.in_(rows[start : start + 500]))
        ):
            found[row[0]] = tuple(row)[1:]
    return found


def _refuse_known(conn: Connection, keys: list[str]) -> None:
    for start in range(0, len(keys), 500):
        query = select(func.min(images.c.key)).where(images.c.key.in_(keys[start : start + 500]))
        if (known := conn.execute(query).scalar()) is not None:
            raise ConflictError(
                f"image {known!r} is in the store already, at another row: keys must be unique"
            )


def _ints(values: Sequence[int] | NDArray[Any]) -> list[int]:
    plain: list[int] = np.asarray(values, dtype=np.int64).tolist()
    return plain
