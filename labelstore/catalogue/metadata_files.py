"""Digests of the array folder's metadata files, and how changing them is safe.

Metadata files carry no checksum of their own. A change takes three steps: an intent (file, old
digest, new digest) is committed; the files are written inside a second transaction; the same
transaction records the new digests and drops the intent. A kill in between leaves the intent, with
which either digest is acceptable, and the next process that opens the store finishes the change from the
catalogue's rows. The newest intent is the only one that may finish: an older one was computed from
fewer rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sqlalchemy import Connection

from labelstore.catalogue.array_rows import ArrayRows, array_rows_state, read_array_rows
from labelstore.catalogue.connection import Database
from labelstore.catalogue.digests import delete_rows, insert_rows, update_rows, verified_rows
from labelstore.catalogue.metadata_intents import ABSENT, acceptable_digests, announce
from labelstore.catalogue.tables import metadata_files, metadata_intents
from labelstore.errors import ConflictError


class MetadataFiles:
    """What the metadata files follow from, which digests they may have, and how they are changed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def array_rows(self) -> ArrayRows:
        """What the arrays' metadata follows from, as one transaction sees it."""
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
            wanted = changes(acceptable_digests(conn))
            if wanted:
                return announce(conn, wanted)
            delete_rows(conn, metadata_intents)
            return None

        return self._database.write(work)

    def finish(self, publish: Callable[[], None] | None = None, token: int | None = None) -> None:
        """Write the files (`publish`), record the newest intent's digests and drop all intents, under the write lock.

        ConflictError where another change was announced after `token`: compute the metadata again
        and start over.
        """

        def work(conn: Connection) -> None:
            intents = verified_rows(conn, metadata_intents)
            newest = max((row[0] for row in intents), default=None)
            if token is not None and token != newest:
                raise ConflictError(
                    "metadata files were changed by another worker: read the metadata again and start over"
                )
            if publish is not None:
                publish()
            recorded = {row[0] for row in verified_rows(conn, metadata_files)}
            for intent, key, _, new in intents:
                if intent != newest:
                    continue
                if new == ABSENT:
                    delete_rows(conn, metadata_files, metadata_files.c.key == key)
                elif key in recorded:
                    update_rows(conn, metadata_files, [{"key": key, "digest": new}])
                else:
                    insert_rows(conn, metadata_files, [{"key": key, "digest": new}])
            delete_rows(conn, metadata_intents)

        self._database.write(work)

    def digests(self) -> dict[str, frozenset[str]]:
        """Per metadata file the digests that are acceptable; more than one while a change is under way."""
        with self._database.reading() as conn:
            return acceptable_digests(conn)

    def pending(self) -> dict[str, str]:
        """Files of the newest unfinished change and their new digests; empty where nothing was interrupted."""
        with self._database.reading() as conn:
            intents = verified_rows(conn, metadata_intents)
        newest = max((row[0] for row in intents), default=None)
        return {key: new for token, key, _, new in intents if token == newest}
