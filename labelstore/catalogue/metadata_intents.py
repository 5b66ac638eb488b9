"""Intents to change the array folder's metadata files, and which digests they make acceptable.

A row that changes what the files have to say (a label set, a mask, more crops, more images) marks them in its
own transaction: an intent that changes nothing yet. So a kill between the row and the files is finished, too.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection

from labelstore.catalogue.digests import insert_rows, verified_rows
from labelstore.catalogue.tables import metadata_files, metadata_intents
from labelstore.errors import ConflictError, DamagedShard
from labelstore.shard_files import check_file_keys

ABSENT = ""
"""Digest of a file that is not there."""


def announce(conn: Connection, files: Mapping[str, tuple[str | None, str | None]]) -> int:
    """Write intents to change files, key -> (old digest, new digest), None for no file; returns their token.

    ConflictError where the old digest is neither recorded nor another intent's: the files changed
    meanwhile.
    """
    acceptable = acceptable_digests(conn)
    token = 1 + max((row[0] for row in verified_rows(conn, metadata_intents)), default=0)
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


def mark(conn: Connection) -> None:
    """Say, where files were written before, that they have to be written again: rows changed that they follow from."""
    top = {key: digest for key, digest in verified_rows(conn, metadata_files) if "/" not in key}
    announce(conn, {key: (digest, digest) for key, digest in top.items()})


def acceptable_digests(conn: Connection) -> dict[str, frozenset[str]]:
    """Per file the digests that are acceptable: the recorded one, and both of every intent; ABSENT for no file."""
    found: dict[str, set[str]] = {
        key: {digest} for key, digest in verified_rows(conn, metadata_files)
    }
    for _, key, old, new in verified_rows(conn, metadata_intents):
        found.setdefault(key, set()).update((old, new))
    try:
        # files of these names are written, copied and removed
        check_file_keys(found)
    except ValueError as error:
        raise DamagedShard(
            f"catalogue table metadata_files: {error}: restore the catalogue from a copy"
        ) from None
    return {key: frozenset(values) for key, values in found.items()}
