"""The images: one row each, numbered in the order of registration, facts filled in as shards decode them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Connection, literal, select

from labelstore.catalogue import metadata_intents
from labelstore.catalogue.connection import Database
from labelstore.catalogue.digests import (
    digest_text,
    num_rows,
    update_rows,
    verified_batches,
)
from labelstore.catalogue.image_columns import (
    DIGEST_BYTES,
    MAX_FREE_ROWS,
    end_row,
    image_columns,
)
from labelstore.catalogue.image_registration import (
    insert_images,
    num_registered,
    plain_columns,
    refuse_known,
)
from labelstore.catalogue.ledger import labelled_elsewhere
from labelstore.catalogue.records import ImageRow
from labelstore.catalogue.tables import images
from labelstore.errors import ConflictError, UsageError


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
            end = end_row(conn)
            first = end if first_row is None else first_row
            if not 0 <= first <= end:
                raise UsageError(
                    f"first row {first}: the catalogue has rows up to {end - 1} and these leave no gaps: give {end}"
                )
            there = num_registered(conn, first, given)
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
            end = end_row(conn)
            first = -(-end // multiple) * multiple
            free = first - num_rows(conn, images)
            if free > MAX_FREE_ROWS:
                raise UsageError(
                    f"{free:,} rows would have no image, {MAX_FREE_ROWS:,} may: every growth begins a new image block, "
                    "so add more images at once, or make a new store"
                )
            refuse_known(conn, given[0])
            insert_images(conn, first, given)
            metadata_intents.mark(conn)
            return range(first, first + len(given[0]))

        return self._database.write(work)

    def num_images(self) -> int:
        """N, bad images included."""
        with self._database.reading() as conn:
            return num_rows(conn, images)

    def num_rows(self) -> int:
        """Image rows: N, and those that no image has."""
        with self._database.reading() as conn:
            return end_row(conn)

    def counts(self) -> tuple[int, int]:
        """`num_images` and `num_rows` at one moment."""
        with self._database.reading() as conn:
            return num_rows(conn, images), end_row(conn)

    def digest(self) -> str:
        """Hexadecimal digest of the table as it is written down: another one after any change."""
        with self._database.reading() as conn:
            return digest_text(conn, images)

    def columns(self) -> dict[str, NDArray[Any]]:
        """The images as NumPy columns over rows: see `image_columns`."""
        with self._database.reading() as conn:
            return image_columns(conn)

    def rows(self, wanted: Sequence[int] | None = None) -> list[ImageRow]:
        """All images in row order, or the wanted ones in the order asked for; `columns` is the fast form.

        UsageError for rows beyond the last.
        """
        names = [column.name for column in images.columns]
        found: dict[int, ImageRow] = {}
        asked = None if wanted is None else set(wanted)
        with self._database.reading() as conn:
            for part in verified_batches(conn, images):
                for row in part:
                    if asked is None or row[0] in asked:
                        found[row[0]] = ImageRow(**dict(zip(names, row, strict=True)))
            if wanted is None:
                return list(found.values())
            if missing := [image for image in wanted if image not in found]:
                raise UsageError(f"image {missing[0]}: the store has rows 0 to {end_row(conn) - 1}")
        return [found[image] for image in wanted]

    def find(self, keys: Iterable[str]) -> dict[str, int]:
        """Rows of images by key, in one transaction; a key that is not there is left out."""
        wanted = list(dict.fromkeys(keys))
        with self._database.reading() as conn:
            there = _rows_by_key(conn, wanted)
            found = {key: there[key] for key in wanted if key in there}
            return found | _past_the_index(conn, [key for key in wanted if key not in found])

    def record_facts(self, conn: Connection, facts: Iterable[tuple[int, int, int, bytes]]) -> None:
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
        known = _facts(conn, list(given))
        if unknown := given.keys() - known.keys():
            raise UsageError(f"image {min(unknown)} is not in the catalogue")
        changes = []
        for image, fact in given.items():
            key, *there = known[image]
            if there == [None, None, None]:
                changes.append(
                    {"image": image, "width": fact[0], "height": fact[1], "digest": fact[2]}
                )
            elif tuple(there) != fact:
                raise ConflictError(
                    f"image {key!r} was {there[0]} x {there[1]} with digest {bytes(there[2] or b'').hex()} and is now "
                    f"{fact[0]} x {fact[1]} with digest {fact[2].hex()}: use the folder that the store was made from"
                )
        update_rows(conn, images, changes)

    def mark_bad(self, conn: Connection, image: int, reason: str, group: str | None = None) -> None:
        """Leave an image out of every label set for good, and say why.

        With the group whose worker says so: ConflictError where another label set has labels of the image already.
        """
        if group is not None and _was_decoded(conn, image):
            held = labelled_elsewhere(conn, group, image)
            if held is not None:
                raise ConflictError(
                    f"image {image} cannot be left out ({reason}): {held} has labels for it, and would lose them; "
                    "restore the file and run the command again"
                )
        update_rows(conn, images, [{"image": image, "bad": reason}])


def _rows_by_key(conn: Connection, keys: list[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for start in range(0, len(keys), 500):
        part = keys[start : start + 500]
        named = conn.execute(select(images.c.image).where(images.c.key.in_(part))).scalars().all()
        # Asked of the table and not of the index, whose row numbers may be damaged.
        there = select(images.c.key, images.c.image).where(images.c.image.in_(named))
        found |= {key: int(image) for key, image in conn.execute(there)}
    return found


def _past_the_index(conn: Connection, keys: list[str]) -> dict[str, int]:
    # Past the index: a damaged page of it must not look like an image that is not there. The class
    # is asked for because the index does not have it, so that SQLite cannot scan the index instead.
    unindexed: ColumnElement[str] = images.c.key + literal("")
    found: dict[str, int] = {}
    for start in range(0, len(keys), 500):
        query = select(images.c.key, images.c.image, images.c.class_id)
        there = conn.execute(query.where(unindexed.in_(keys[start : start + 500])))
        found |= {key: int(image) for key, image, _ in there}
    return found


def _was_decoded(conn: Connection, image: int) -> bool:
    """True for an image that some shard has labels for, or had before a drop."""
    known = select(images.c.digest, images.c.bad).where(images.c.image == image)
    found = conn.execute(known).one_or_none()
    return found is not None and found[0] is not None and found[1] is None


def _facts(conn: Connection, rows: list[int]) -> dict[int, tuple[Any, ...]]:
    found: dict[int, tuple[Any, ...]] = {}
    columns = (images.c.image, images.c.key, images.c.width, images.c.height, images.c.digest)
    for start in range(0, len(rows), 500):
        for row in conn.execute(
            select(*columns).where(images.c.image.in_(rows[start : start + 500]))
        ):
            found[row[0]] = tuple(row)[1:]
    return found
