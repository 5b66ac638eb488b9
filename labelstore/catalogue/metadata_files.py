"""Digests of the array folder's metadata files, what the files follow from, and how changing them is safe.

Metadata files carry no checksum of their own. A change takes three steps: an intent (file, old
digest, new digest) is committed; the files are written inside a second transaction; the same
transaction records the new digests and drops the intent. A kill in between leaves the intent, with
which either digest is acceptable, and the next process that opens the store finishes the change from the
catalogue's rows. The newest intent is the only one that may finish: an older one was computed from
fewer rows.

The files follow from plans, label sets, masks and the number of image rows, read in one transaction with a text that
tells any other state from it. A row that changes what the files have to say marks them in its own transaction: an
intent that changes nothing yet. So a kill between the row and the files is finished, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection

from labelstore.arrays.shard_files import check_file_keys
from labelstore.catalogue.connection import Database
from labelstore.catalogue.digests import (
    Row,
    delete_rows,
    digest_text,
    insert_rows,
    update_rows,
    verified_rows,
)
from labelstore.catalogue.image_blocks import counts
from labelstore.catalogue.record_columns import records_by_name
from labelstore.catalogue.records import LabelSetRow, MaskRow, PlanRow
from labelstore.catalogue.schema import label_sets, masks, metadata_files, metadata_intents, plans
from labelstore.errors import ConflictError, DamagedShard


@dataclass(frozen=True, kw_only=True)
class ArrayRows:
    """Plans, label sets and masks by name, and how many image rows there are."""

    num_rows: int
    plans: Mapping[str, PlanRow]
    label_sets: Mapping[str, LabelSetRow]
    masks: Mapping[str, MaskRow]
    state: str
    """Another text after any change of these."""


def read_array_rows(conn: Connection) -> ArrayRows:
    """The rows as the transaction of `conn` sees them; DamagedShard unless they match their digests."""
    rows = counts(conn)[1]
    return ArrayRows(
        num_rows=rows,
        plans=records_by_name(conn, plans, PlanRow),
        label_sets=records_by_name(conn, label_sets, LabelSetRow),
        masks=records_by_name(conn, masks, MaskRow),
        state=_state(conn, rows),
    )


def array_rows_state(conn: Connection) -> str:
    """`ArrayRows.state` alone. Facts of images are left out: workers record them with every commit."""
    return _state(conn, counts(conn)[1])


def _state(conn: Connection, rows: int) -> str:
    return f"{rows} {digest_text(conn, plans, label_sets, masks)}"


ABSENT = ""
"""Digest of a file that is not there."""


Known = tuple[dict[str, str], list[Row]]
"""Recorded digests by file, and the rows of the intents."""


def announce(
    conn: Connection,
    files: Mapping[str, tuple[str | None, str | None]],
    known: Known | None = None,
) -> int:
    """Write intents to change files, key -> (old digest, new digest), None for no file; returns their token.

    ConflictError where the old digest is neither recorded nor another intent's: the files changed
    meanwhile.
    """
    known = known or _known(conn)
    acceptable = _acceptable(known)
    token = 1 + max((row[0] for row in known[1]), default=0)
    for key, (old, _) in files.items():
        if (old or ABSENT) not in acceptable.get(key, frozenset({ABSENT})):
            raise ConflictError(
                f"{key} was changed by another worker: read the metadata again and start over"
            )
    insert_rows(
        conn,
        metadata_intents,
        [
            {"token": token, "key": key, "old_digest": old or ABSENT, "new_digest": new or ABSENT}
            for key, (old, new) in files.items()
        ],
    )
    return token


def mark_metadata(conn: Connection) -> None:
    """Say, where files were written before, that they have to be written again: rows changed that they follow from."""
    known = _known(conn)
    if top := {key: (digest, digest) for key, digest in known[0].items() if "/" not in key}:
        announce(conn, top, known)


def _known(conn: Connection) -> Known:
    recorded, intents = verified_rows(conn, metadata_files), verified_rows(conn, metadata_intents)
    return dict(recorded), intents


def _acceptable(known: Known) -> dict[str, frozenset[str]]:
    """Per file the digests that are acceptable: the recorded one, and both of every intent; ABSENT for no file."""
    acceptable = {key: {digest} for key, digest in known[0].items()}
    for _, key, old, new in known[1]:
        acceptable.setdefault(key, set()).update((old, new))
    try:
        # files of these names are written, copied and removed
        check_file_keys(acceptable)
    except ValueError as error:
        raise DamagedShard(
            f"catalogue table metadata_files: {error}: restore the catalogue from a copy"
        ) from None
    return {key: frozenset(values) for key, values in acceptable.items()}


class MetadataFiles:
    """What the metadata files follow from, which digests they may have, and how they are changed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def array_rows(self) -> ArrayRows:
        """Read the rows that the arrays' metadata follows from, in one transaction."""
        with self._database.reading() as conn:
            return read_array_rows(conn)

    def begin(self, files: Mapping[str, tuple[str | None, str | None]]) -> int:
        """Announce a change of metadata files, key -> (old digest, new digest), None for no file; returns its token.

        ConflictError where the files changed meanwhile.
        """
        return self._database.write(lambda conn: announce(conn, files))

    def begin_from(
        self,
        rows: ArrayRows,
        changes: Callable[
            [Mapping[str, frozenset[str]]], Mapping[str, tuple[str | None, str | None]]
        ],
    ) -> int | None:
        """`begin` of the changes that the acceptable digests ask for, if the catalogue still holds `rows`.

        ConflictError where it holds others: compute the metadata again and start over. None where nothing has
        to change; whatever was announced is dropped then.
        """

        def work(conn: Connection) -> int | None:
            if array_rows_state(conn) != rows.state:
                raise ConflictError(
                    "what the metadata files follow from was changed by another worker: start over"
                )
            known = _known(conn)
            wanted = changes(_acceptable(known))
            if wanted:
                return announce(conn, wanted, known)
            delete_rows(conn, metadata_intents)
            return None

        return self._database.write(work)

    def finish(self, publish: Callable[[], None] | None = None, token: int | None = None) -> None:
        """Write the files (`publish`), record the newest intent's digests and drop all intents, under the write lock.

        ConflictError where another change was announced after `token`: compute the metadata again
        and start over.
        """

        def work(conn: Connection) -> None:
            recorded, intents = _known(conn)
            newest = max((row[0] for row in intents), default=None)
            if token is not None and token != newest:
                raise ConflictError(
                    "metadata files were changed by another worker: read the metadata again and start over"
                )
            if publish is not None:
                publish()
            changed = {key: new for intent, key, _, new in intents if intent == newest}
            gone = [key for key, new in changed.items() if new == ABSENT]
            rows = [{"key": key, "digest": new} for key, new in changed.items() if new != ABSENT]
            delete_rows(conn, metadata_files, metadata_files.c.key.in_(gone))
            update_rows(conn, metadata_files, [row for row in rows if row["key"] in recorded])
            insert_rows(conn, metadata_files, [r for r in rows if r["key"] not in recorded])
            delete_rows(conn, metadata_intents)

        self._database.write(work)

    def digests(self) -> dict[str, frozenset[str]]:
        """Per metadata file the digests that are acceptable; more than one while a change is under way."""
        with self._database.reading() as conn:
            return _acceptable(_known(conn))

    def pending(self) -> dict[str, str]:
        """Files of the newest unfinished change and their new digests; empty where nothing was interrupted."""
        with self._database.reading() as conn:
            intents = verified_rows(conn, metadata_intents)
        newest = max((row[0] for row in intents), default=None)
        return {key: new for token, key, _, new in intents if token == newest}
