"""Registering images: what is given, what of it is there already, and the rows of the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from labelstore.catalogue.connection import Database
from labelstore.catalogue.digests import digest_text, insert_rows, update_rows, verified_batches
from labelstore.catalogue.image_blocks import (
    BLOCK_ROWS,
    DIGEST_BYTES,
    MAX_FREE_ROWS,
    Columns,
    ImageColumns,
    blank_columns,
    block_columns,
    counts,
    damaged,
    image_columns,
    pack,
    pack_bad,
    pack_decoded,
    rows_by_key,
    unpack,
)
from labelstore.catalogue.ledger import labelled_elsewhere
from labelstore.catalogue.metadata_files import mark_metadata
from labelstore.catalogue.records import ImageRow
from labelstore.catalogue.schema import image_blocks
from labelstore.errors import ConflictError, UsageError

GivenColumns = tuple[list[str], list[int], list[int], list[int]]
"""Keys, class ids, sizes in bytes and times of change of images that are registered together."""
_NAMES = ("key", "class_id", "size", "mtime_ns")


def plain_columns(
    keys: Sequence[str],
    class_ids: Sequence[int] | NDArray[Any],
    sizes: Sequence[int] | NDArray[Any],
    mtimes_ns: Sequence[int] | NDArray[Any],
) -> GivenColumns:
    """Return the columns as plain values; UsageError unless of one length, ConflictError for a key given twice."""
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


def num_registered(conn: Connection, first: int, end: int, given: GivenColumns) -> int:
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


def insert_images(conn: Connection, first: int, given: GivenColumns) -> None:
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


Facts = tuple[int, int, int, bytes]
"""Image row, width, height, digest of a decoded image."""


class ImageTable:
    """The images of a store. Every method is one transaction, except those that take a connection."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self,
        keys: Sequence[str],
        class_ids: Sequence[int] | NDArray[Any],
        sizes: Sequence[int] | NDArray[Any],
        mtimes_ns: Sequence[int] | NDArray[Any],
        *,
        first_row: int | None = None,
    ) -> range:
        """Register images at the end of the table, or from `first_row` on where they are already; returns their rows.

        `first_row` says where the caller believes the end to be. Images that lie from there on already,
        with the same key, class, size and time, are left as they are; anything else in the way is a
        ConflictError.
        """
        given = plain_columns(keys, class_ids, sizes, mtimes_ns)

        def work(conn: Connection) -> range:
            _, end = counts(conn)
            first = end if first_row is None else first_row
            if not 0 <= first <= end:
                raise UsageError(
                    f"first row {first}: the catalogue has rows up to {end - 1} and these leave no gaps: give {end}"
                )
            there = num_registered(conn, first, end, given)
            names, classes, lengths, times = given
            new = names[there:], classes[there:], lengths[there:], times[there:]
            if new[0] and end:
                refuse_known(conn, new[0])
            insert_images(conn, first + there, new)
            return range(first, first + len(names))

        return self._database.write(work)

    def append(
        self,
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
        given = plain_columns(keys, class_ids, sizes, mtimes_ns)

        def work(conn: Connection) -> range:
            count, end = counts(conn)
            first = -(-end // multiple) * multiple
            free = first - count
            if free > MAX_FREE_ROWS:
                raise UsageError(
                    f"{free:,} rows would have no image, {MAX_FREE_ROWS:,} may: every growth begins a new image block, "
                    "so add more images at once, or make a new store"
                )
            refuse_known(conn, given[0])
            insert_images(conn, first, given)
            mark_metadata(conn)
            return range(first, first + len(given[0]))

        return self._database.write(work)

    def num_images(self) -> int:
        """N, bad images included."""
        with self._database.reading() as conn:
            return counts(conn)[0]

    def num_rows(self) -> int:
        """Image rows: N, and those that no image has."""
        with self._database.reading() as conn:
            return counts(conn)[1]

    def counts(self) -> tuple[int, int]:
        """`num_images` and `num_rows` at one moment."""
        with self._database.reading() as conn:
            return counts(conn)

    def digest(self) -> str:
        """Hexadecimal digest of the table as it is written down: another one after any change."""
        with self._database.reading() as conn:
            return digest_text(conn, image_blocks)

    def columns(self) -> ImageColumns:
        """The images as NumPy columns over rows: see `image_columns`."""
        with self._database.reading() as conn:
            return image_columns(conn)

    def rows(self, wanted: Sequence[int] | None = None) -> list[ImageRow]:
        """All images in row order, or the wanted ones in the order asked for; `columns` is the fast form.

        UsageError for rows beyond the last.
        """
        rows_by_number: dict[int, ImageRow] = {}
        asked = None if wanted is None else set(wanted)
        blocks = None if asked is None else {image // BLOCK_ROWS for image in asked}
        with self._database.reading() as conn:
            for part in verified_batches(conn, image_blocks):
                for row in part:
                    if blocks is None or row[0] in blocks:
                        rows_by_number |= _image_rows(row[0], unpack(row), asked)
            if wanted is None:
                return list(rows_by_number.values())
            if missing := [image for image in wanted if image not in rows_by_number]:
                raise UsageError(
                    f"image {missing[0]}: the store has rows 0 to {counts(conn)[1] - 1}"
                )
        return [rows_by_number[image] for image in wanted]

    def find(self, keys: Iterable[str]) -> dict[str, int]:
        """Rows of images by key, in one transaction; a key that is not there is left out."""
        wanted = list(dict.fromkeys(keys))
        with self._database.reading() as conn:
            number_of = rows_by_key(conn, wanted)
            if len(number_of) < len(wanted):
                # a damaged search column must not look like an image that is not there
                missing = {key for key in wanted if key not in number_of}
                all_keys = enumerate(image_columns(conn)["key"].tolist())
                number_of |= {key: row for row, key in all_keys if key in missing}
        return {key: number_of[key] for key in wanted if key in number_of}

    def record_facts(self, conn: Connection, facts: Iterable[Facts]) -> None:
        """Write (image, width, height, digest) of decoded images; facts that are there must be the same.

        ConflictError where an image has changed since another shard decoded it.
        """
        given = {
            int(image): (int(width), int(height), bytes(digest))
            for image, width, height, digest in facts
        }
        for image, (_, _, digest) in given.items():
            if len(digest) != DIGEST_BYTES:
                raise UsageError(
                    f"image {image}: a digest has {DIGEST_BYTES} bytes, not {len(digest)}"
                )
        by_block: dict[int, list[Facts]] = {}
        for image, fact in given.items():
            by_block.setdefault(image // BLOCK_ROWS, []).append((image, *fact))
        changes = []
        for block, part in sorted(by_block.items()):
            columns = _block_of(conn, part[0][0])
            # another label set decodes the same images: then nothing changes
            if _add_facts(columns, part):
                changes.append({"block": block, **pack_decoded(columns)})
        update_rows(conn, image_blocks, changes)

    def mark_bad(self, conn: Connection, image: int, reason: str, group: str | None = None) -> None:
        """Leave an image out of every label set for good, and say why.

        With the group whose worker says so: ConflictError where another label set has labels of the image already.
        """
        columns, at = _block_of(conn, image), image % BLOCK_ROWS
        if at >= len(columns["free"]) or columns["free"][at]:
            raise _unknown(image)
        # True for an image that some shard has labels for, or had before a drop
        was_decoded = columns["has_digest"][at] and columns["bad"][at] is None
        if group is not None and was_decoded:
            held = labelled_elsewhere(conn, group, image)
            if held is not None:
                raise ConflictError(
                    f"image {image} cannot be left out ({reason}): {held} has labels for it, and would lose them; "
                    "restore the file and run the command again"
                )
        columns["bad"][at] = str(reason)
        change = {"block": image // BLOCK_ROWS, "bad": pack_bad(columns["bad"])}
        update_rows(conn, image_blocks, [change])


def _block_of(conn: Connection, image: int) -> Columns:
    """Columns of the block that has an image; UsageError where there is none."""
    columns = block_columns(conn, image // BLOCK_ROWS)
    if columns is None:
        raise _unknown(image)
    return columns


def _add_facts(columns: Columns, facts: Sequence[Facts]) -> bool:
    """Put facts of images into their block's columns; True where any was new, ConflictError where others are there."""
    images, widths, heights, digests = zip(*facts, strict=True)
    at = np.array(images, np.int64) % BLOCK_ROWS
    there = at < len(columns["free"])
    there[there] &= ~columns["free"][at[there]]
    if not there.all():
        raise _unknown(images[int(np.argmin(there))])
    given = {
        "width": np.array(widths, np.int32),
        "height": np.array(heights, np.int32),
        "digest": np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES),
    }
    known = columns["has_digest"][at]
    changed = (columns["digest"][at] != given["digest"]).any(axis=1)
    for name in ("width", "height"):
        changed |= columns[name][at] != given[name]
    if (changed & known).any():
        first = int(np.argmax(changed & known))
        raise _changed(columns, facts[first])
    for name, values in given.items():
        columns[name][at] = values
    columns["has_digest"][at] = True
    return not known.all()


def _changed(columns: Columns, fact: Facts) -> ConflictError:
    image, width, height, digest = fact
    at = image % BLOCK_ROWS
    return ConflictError(
        f"image {columns['key'][at]!r} was {columns['width'][at]} x {columns['height'][at]} with digest "
        f"{columns['digest'][at].tobytes().hex()} and is now {width} x {height} with digest {digest.hex()}: use the "
        "folder that the store was made from"
    )


def _unknown(image: int) -> UsageError:
    return UsageError(f"image {image} is not in the catalogue")


def _image_rows(block: int, columns: Columns, wanted: set[int] | None) -> dict[int, ImageRow]:
    """Records of a block's images, or of the wanted ones, by row."""
    first, found = block * BLOCK_ROWS, {}
    for at in np.flatnonzero(~columns["free"]).tolist():
        if wanted is not None and first + at not in wanted:
            continue
        numbers = {
            name: None if (value := int(columns[name][at])) == -1 else value
            for name in ("width", "height", "size", "mtime_ns")
        }
        found[first + at] = ImageRow(
            image=first + at,
            key=columns["key"][at],
            class_id=int(columns["class_id"][at]),
            digest=columns["digest"][at].tobytes() if columns["has_digest"][at] else None,
            bad=columns["bad"][at],
            **numbers,
        )
    return found
