"""Digests of the array folder's metadata files, and the intents that make changing them safe.

Metadata files carry no checksum of their own. A change takes three steps: an intent (file, old
digest, new digest) is committed; the files are written inside a second transaction; the same
transaction records the new digests and drops the intent. A kill in between leaves the intent, with
which either digest is acceptable, and whoever opens the store next finishes the change from the
catalogue's rows. The newest intent is the only one that may finish: an older one was computed from
fewer rows.

A row that changes what the files have to say (a label set, a mask, more crops, more images) marks them in its
own transaction: an intent that changes nothing yet. So a kill between the row and the files is finished, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sqlalchemy import Connection

from labelstore.catalogue.digests import delete_rows, insert_rows, update_rows, verified_rows
from labelstore.catalogue.tables import metadata_files, metadata_intents
from labelstore.errors import ConflictError, DamagedShard
from labelstore.shard_files import check_file_key

ABSENT = ""
"""Digest of a file that is not there."""


def begin(conn: Connection, files: Mapping[str, tuple[str | None, str | None]]) -> int:
    """Write intents to change files, key -> (old digest, new digest), None for no file; returns their token.

    ConflictError where the old digest is neither recorded nor another intent's: the files changed
    meanwhile.
    """
    acceptable = digests(conn)
    token = 1 + max((row[0] for row in verified_rows(conn, metadata_intents)), default=0)
    for key, (old, _) in files.items():
        if (old or ABSENT) not in acceptable.get(key, frozenset({ABSENT})):
            raise ConflictError(
                f"{key} was changed by another worker: read the metadata again and start over"
            )
    insert_rows(
        conn,
        metadata_intents,
        (
            {"token": token, "key": key, "old_digest": old or ABSENT, "new_digest": new or ABSENT}
            for key, (old, new) in files.items()
        ),
    )
    return token


def mark(conn: Connection) -> None:
    """Say, where files were written before, that they have to be written again: rows changed that they follow from."""
    top = {key: digest for key, digest in verified_rows(conn, metadata_files) if "/" not in key}
    begin(conn, {key: (digest, digest) for key, digest in top.items()})


def forget(conn: Connection) -> None:
    """Drop all intents: every file is what the rows ask for."""
    delete_rows(conn, metadata_intents)


def finish(conn: Connection, publish: Callable[[], None] | None, token: int | None) -> None:
    """Call `publish`, record the newest intent's digests and drop all intents.

    ConflictError if `token` is not the newest: another worker has changed, or is changing, the
    metadata.
    """
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


def digests(conn: Connection) -> dict[str, frozenset[str]]:
    """Per file the digests that are acceptable: the recorded one, and both of every intent; ABSENT for no file."""
    found: dict[str, set[str]] = {
        key: {digest} for key, digest in verified_rows(conn, metadata_files)
    }
    for _, key, old, new in verified_rows(conn, metadata_intents):
        found.setdefault(key, set()).update((old, new))
    try:
        # files of these names are written, copied and removed
        return {check_file_key(key): frozenset(values) for key, values in found.items()}
    except ValueError as error:
        raise DamagedShard(
            f"catalogue table metadata_files: {error}: restore the catalogue from a copy"
        ) from None


def pending(conn: Connection) -> dict[str, str]:
    """Files of the newest intent and their new digests; empty when nothing was interrupted."""
    intents = verified_rows(conn, metadata_intents)
    newest = max((row[0] for row in intents), default=None)
    return {key: new for token, key, _, new in intents if token == newest}
