"""Bringing an older catalogue up to date, in one transaction: after a kill it is the old one or the new one.

Digests are of rows in column order, so a revision that changes columns changes them. The old rows are held
against the old digests before anything is changed, and the new digests are written with the new rows.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, MetaData, Table, delete, inspect, select, update

from labelstore.catalogue.digests import (
    Row,
    batch_rows,
    verified_batches,
    verify_tables,
    write_digests,
)
from labelstore.catalogue.schema import (
    BASELINE,
    DIGESTED,
    FORMAT_VERSION,
    alembic_version,
    digests,
    leases,
    metadata,
    store,
)
from labelstore.errors import ConflictError, DamagedShard, FormatVersionError

_UNDIGESTED = {digests.name, alembic_version.name}


def lacking_revisions(conn: Connection, name: str | None) -> tuple[str, ...]:
    """Revisions that the catalogue lacks, oldest first; `name` is the database's, for messages.

    DamagedShard where it does not say which it has, FormatVersionError for one that this version does not know.
    """
    held = [row[0] for row in conn.execute(select(alembic_version.c.version_num))]
    if held == [BASELINE]:
        return ()
    if len(held) != 1:
        raise DamagedShard(
            f"{name}: does not say which revision it has: restore the catalogue from a copy"
        )
    # alembic takes 0.2 s to import, and hardly a store needs it
    from labelstore.catalogue.migrations import revisions

    known = revisions()
    if held[0] not in known:
        raise FormatVersionError(
            f"{name}: revision {str(held[0])[:40]!r} is not one of {', '.join(known)}: update labelstore"
        )
    return known[known.index(held[0]) + 1 :]


def migrate(conn: Connection, name: str | None, *, now: float) -> tuple[str, ...]:
    """Apply the lacking revisions in the caller's transaction; returns which.

    ConflictError while somebody holds a lease: a worker of the older version would write older rows.
    DamagedShard where the catalogue does not hold what was written.
    """
    lacking = lacking_revisions(conn, name)
    if not lacking:
        return ()
    refuse_busy(conn, name, now=now)
    for table in _held_tables(conn):
        for _ in verified_batches(conn, table):
            pass
    from labelstore.catalogue.migrations import upgrade

    applied = upgrade(conn)
    conn.execute(update(store).values(format_version=FORMAT_VERSION))
    conn.execute(delete(digests))
    for table in DIGESTED:
        write_digests(conn, table, _rows(conn, table))
    verify_tables(conn)
    return applied


def refuse_busy(conn: Connection, name: str | None, *, now: float) -> None:
    """ConflictError while somebody holds a lease."""
    busy = conn.execute(select(leases.c.owner).where(leases.c.expires > now)).first()
    if busy is not None:
        raise ConflictError(
            f"{name}: {busy[0]} is writing to the store: run this when its writers are done"
        )


def _held_tables(conn: Connection) -> Iterator[Table]:
    """The tables as they are before the revisions."""
    for name in inspect(conn).get_table_names():
        if name not in _UNDIGESTED:
            info = metadata.tables[name].info if name in metadata.tables else {}
            yield Table(name, MetaData(), autoload_with=conn, info=dict(info))


def _rows(conn: Connection, table: Table) -> Iterator[list[Row]]:
    found = conn.execute(select(table), execution_options={"yield_per": batch_rows(table)})
    for part in found.partitions():
        yield [tuple(row) for row in part]
