"""Catalogues on a PostgreSQL server: each store has a schema of its own, so that one database serves many."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, insert, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.schema import CreateSchema, DropSchema

from labelstore.catalogue.connection import Database
from labelstore.catalogue.digests import batch_rows, insert_tuples
from labelstore.catalogue.engines import parse_url, sqlite_url
from labelstore.catalogue.postgresql import name_servers
from labelstore.catalogue.schema import metadata
from labelstore.errors import StorageError, UsageError

T = TypeVar("T")

SCHEMA_PREFIX = "labelstore_"


def check_server_url(url: str) -> None:
    """UsageError unless `url` names a PostgreSQL database and holds no password."""
    parsed = parse_url(url)
    if parsed.drivername == "sqlite":
        raise UsageError(
            f"`catalogue={url}`: a catalogue in a file lies in the store; give postgresql://HOST/DATABASE, "
            "or leave it out"
        )


def name_server(url: str) -> None:
    """The user gives this URL, not a store: passwords may go to its server, from here and from worker processes."""
    name_servers(parse_url(url))


def own_schema_url(url: str, uuid: str) -> str:
    """The URL with a schema for the store of that uuid alone; a URL that chooses its schema stays as it is."""
    parsed = make_url(url)
    if "options" in parsed.query:
        return url
    chosen = parsed.update_query_dict({"options": f"-csearch_path={SCHEMA_PREFIX}{uuid}"})
    return chosen.render_as_string(hide_password=False)


def make_schema(url: str) -> None:
    """Make the schema that `own_schema_url` chose; nothing for one that somebody else chose."""
    name = _own_schema(url)
    if name is not None:
        _run(url, lambda conn: conn.execute(CreateSchema(name)))


def check_server(url: str) -> None:
    """StorageError unless the server answers and lets this user make a schema; nothing is made."""
    name_server(url)
    allowed = text("SELECT has_database_privilege(current_database(), 'CREATE')")
    may_make = _run(url, lambda conn: conn.execute(allowed).scalar_one())
    if not may_make and "options" not in parse_url(url).query:
        shown = parse_url(url).render_as_string()
        raise StorageError(
            f"{shown}: this user may not make a schema in the database: its owner can GRANT CREATE ON DATABASE"
        )


def drop_catalogue(url: str) -> None:
    """Remove a catalogue: its schema, if that is its own, otherwise its tables."""
    name = _own_schema(url)
    if name is None:
        _run(url, metadata.drop_all)
    else:
        _run(url, lambda conn: conn.execute(DropSchema(name, cascade=True, if_exists=True)))


def same_server(one: str, other: str) -> bool:
    """Do two URLs name the same database, whatever the schema?"""

    def plain(url: str) -> object:
        return parse_url(url).difference_update_query(
            ["options", "connect_timeout", "application_name"]
        )

    return plain(one) == plain(other)


def catalogue_bytes(conn: Connection) -> int:
    """Return the bytes of the tables and their indexes on the server."""
    query = text(
        "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class "
        "WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace"
    )
    return int(conn.execute(query).scalar_one())


def copy_to_file(conn: Connection, path: Path) -> None:
    """Every row of the catalogue behind `conn` in a new SQLite file; digests go along, and hold there too."""
    target = Database(sqlite_url(path), creating=True)
    try:
        with target.creating() as copy:
            metadata.create_all(copy)
            for table in metadata.sorted_tables:
                query = select(table).order_by(*table.primary_key.columns)
                found = conn.execute(query, execution_options={"yield_per": batch_rows(table)})
                for rows in found.partitions():
                    if table.name in ("digests", "alembic_version"):
                        copy.execute(insert(table), [row._asdict() for row in rows])
                    else:
                        insert_tuples(copy, table, (tuple(row) for row in rows), counted=False)
    finally:
        target.close()


def _own_schema(url: str) -> str | None:
    options = make_url(url).query.get("options", "")
    match = re.fullmatch(rf"-csearch_path=({SCHEMA_PREFIX}[0-9a-f]{{32}})", str(options))
    return None if match is None else match[1]


def _run(url: str, work: Callable[[Connection], T]) -> T:
    database = Database(url, creating=True)
    try:
        with database.creating() as conn:
            return work(conn)
    finally:
        database.close()
