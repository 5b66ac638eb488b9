"""The images as NumPy columns over image rows, and where they end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, func, select

from labelstore.catalogue.digests import num_rows, verified_batches
from labelstore.catalogue.image_blocks import (
    BLOCK_ROWS,
    Columns,
    blank_columns,
    checked_head,
    checked_heads,
    damaged,
    key_crc,
    unpack,
    unpack_keys,
)
from labelstore.catalogue.tables import image_blocks

MAX_FREE_ROWS = 1 << 22
"""Most rows without an image that a catalogue may have: every row takes memory."""
NO_IMAGE = "no image has this row"
"""What the column `bad` says of such a row."""
HEAD = (
    image_blocks.c.block,
    image_blocks.c.num_rows,
    image_blocks.c.num_images,
    image_blocks.c.checksum,
)


def counts(conn: Connection) -> tuple[int, int]:
    """(images, image rows): the second is larger where rows were left free.

    DamagedShard for a number that no catalogue of so many images has.
    """
    written = num_rows(conn, image_blocks)
    # before memory is asked for: the number is only what somebody wrote into another table
    there = conn.execute(select(func.count()).select_from(image_blocks)).scalar()
    if there != written:
        raise damaged(f"has {there} rows where {written} were written")
    heads = checked_heads(conn.execute(select(*HEAD).order_by(HEAD[0])))
    count = sum(num_images for _, _, num_images in heads)
    end = heads[-1][0] * BLOCK_ROWS + heads[-1][1] if heads else 0
    if end > count + MAX_FREE_ROWS:
        raise damaged(f"has {count} images and row {end - 1}")
    return count, end


def image_columns(conn: Connection) -> dict[str, NDArray[Any]]:
    """The images as columns over image rows, checked against the table's digest.

    `key` and `bad` object (N,), `class_id` int32, `width` and `height` int32 with -1 where unknown,
    `digest` uint8 (N, 16) with `has_digest` bool, `size` and `mtime_ns` int64 with -1 where
    unknown. `free` is True for rows that no image has (see `ImageTable.append`): their key is empty, their
    class -1, and `bad` says so.
    """
    _, total = counts(conn)
    columns = blank_columns(total)
    for part in verified_batches(conn, image_blocks):
        for row in part:
            found = unpack(row)
            first = row[0] * BLOCK_ROWS
            for name, values in found.items():
                columns[name][first : first + len(values)] = values
    columns["bad"][columns["free"]] = NO_IMAGE
    return columns


def block_columns(conn: Connection, block: int) -> Columns | None:
    """Columns of one block's rows, as `unpack` gives them; None where it has no images."""
    row = conn.execute(select(image_blocks).where(image_blocks.c.block == block)).one_or_none()
    return None if row is None else unpack(tuple(row))


def rows_by_key(conn: Connection, keys: Sequence[str]) -> dict[str, int]:
    """Image rows of those keys that the search finds: a damaged search column may hide one, and shows none wrongly."""
    wanted = np.unique(np.array([key_crc(key) for key in keys], np.uint32))
    known = set(keys)
    heads, searched = [], []
    for *head, crcs in conn.execute(select(*HEAD, image_blocks.c.key_crc)):
        block, count, _ = checked_head(head)
        if not isinstance(crcs, bytes) or len(crcs) != 4 * count:
            raise damaged(f"holds what nobody wrote there (block {block})")
        heads.append((block, count))
        searched.append(crcs)
    hits = np.flatnonzero(np.isin(np.frombuffer(b"".join(searched), "<u4"), wanted))
    ends = np.cumsum([count for _, count in heads])
    blocks = [heads[at] for at in np.unique(np.searchsorted(ends, hits, "right")).tolist()]
    found: dict[str, int] = {}
    for block, count in blocks:
        packed = select(image_blocks.c.key).where(image_blocks.c.block == block)
        for at, key in enumerate(_keys(conn.execute(packed).scalar(), block, count)):
            if key in known:
                found[key] = block * BLOCK_ROWS + at
    return found


def _keys(packed: object, block: int, count: int) -> list[str]:
    try:
        if isinstance(packed, bytes):
            return unpack_keys(packed, count)
    except ValueError:
        pass
    raise damaged(f"holds what nobody wrote there (block {block})")
