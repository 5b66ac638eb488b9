"""SQLAlchemy engines of the two databases: what a connection is told first, and how a transaction begins."""

from __future__ import annotations

import os
import re
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, NullPool, create_engine, event
from sqlalchemy.engine import URL, ExceptionContext, make_url
from sqlalchemy.exc import ArgumentError

from labelstore.catalogue.named_servers import (
    NO_SECRETS,
    SECRETS_FROM_VERSION,
    how_to_name,
    is_named,
)
from labelstore.errors import DamagedShard, RejectedInput, UsageError

BUSY_SECONDS = 60
"""How long a transaction waits for other writers before it gives up."""

CONNECT_SECONDS = 10
"""How long a PostgreSQL server has to answer."""

SILENT_SECONDS = 2 * BUSY_SECONDS
"""How long a PostgreSQL server may send nothing while it is waited for: longer than it waits for other writers."""

KEEPALIVE = {"keepalives_idle": 20, "keepalives_interval": 10, "keepalives_count": 3}
"""Libpq's settings by which the system notices a machine that is gone, in less than a minute."""

MAX_CELL_BYTES = 64 << 20
"""Largest value of a SQLite catalogue: no row of ours comes near, and a wicked one is not read into memory."""

QUERY = ("host", "port", "options", "sslmode", "connect_timeout", "application_name")
"""What a URL may say after its `?`."""

WRITE = "labelstore_write"
CREATE = "labelstore_create"
"""Execution options that say what a transaction is for; one without either only reads."""


def sqlite_url(path: Path) -> URL:
    """The URL of a SQLite file, whatever characters its path has: as text, `?` and `%` would mean something else."""
    return URL.create("sqlite", database=str(path.absolute()))


def parse_url(url: str | URL) -> URL:
    """The URL, if it is one of the two databases and holds no password; UsageError otherwise."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise UsageError(
            f"catalogue URL {url!r}: give sqlite:///PATH or postgresql+psycopg://HOST/DATABASE"
        ) from None
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "postgresql+psycopg"):
        raise UsageError(
            f"catalogue URL {parsed.render_as_string()!r}: give sqlite:///PATH or postgresql+psycopg://HOST/DATABASE"
        )
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise UsageError(
            f"catalogue URL {url!r}: a catalogue in memory is lost, give sqlite:///PATH"
        )
    if parsed.password is not None or "password" in parsed.query:
        shown = parsed.difference_update_query(["password"]).render_as_string()
        raise UsageError(
            f"catalogue URL {shown!r} holds a password: put it into ~/.pgpass or PGPASSWORD"
        )
    for name in parsed.query:
        # a store from elsewhere brings its URL along: nothing in it may name files of this machine
        if name not in QUERY:
            raise UsageError(
                f"catalogue URL with {name!r}: allowed are {', '.join(QUERY)}; set the rest in the environment"
            )
    return parsed


def sqlite_engine(path: Path, *, mode: str, readonly: bool) -> Engine:
    """The engine of a SQLite file, opened in SQLite's `mode`: durable, and trusting nothing in the file's schema."""
    # Mode rw instead of ro for a reader in a writable folder: it may have to roll back a killed
    # writer's journal.
    uri = f"file:{quote(str(path))}?mode={mode}"

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            for pragma in (
                f"busy_timeout={BUSY_SECONDS * 1000}",
                "trusted_schema=OFF",
                "cell_size_check=ON",
                "foreign_keys=ON",
                "synchronous=EXTRA",
                # macOS: through the drive's cache, where synchronous stops; nothing elsewhere
                "fullfsync=ON",
                *(["query_only=ON"] if readonly else ["journal_mode=DELETE"]),
            ):
                connection.execute(f"PRAGMA {pragma}").close()
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_CELL_BYTES)
            connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        except UnicodeDecodeError:
            connection.close()
            raise _not_utf8(path) from None
        except BaseException:
            connection.close()
            raise
        return connection

    engine = create_engine("sqlite://", creator=connect, poolclass=NullPool)

    @event.listens_for(engine, "handle_error")
    def unreadable(context: ExceptionContext) -> None:
        if isinstance(context.original_exception, UnicodeDecodeError):
            raise _not_utf8(path) from None

    @event.listens_for(engine, "begin")
    def begin(conn: Connection) -> None:
        options = conn.get_execution_options()
        conn.exec_driver_sql(
            "BEGIN IMMEDIATE" if WRITE in options or CREATE in options else "BEGIN"
        )

    return engine


def _not_utf8(path: Path) -> DamagedShard:
    # The driver fails so on SQLite's own message about a schema with a broken name in it.
    return DamagedShard(f"{path}: holds text that is not UTF-8: restore the catalogue from a copy")


# what libpq says where `NO_SECRETS` keep it from answering, and a server that wants a certificate
_ASKS = re.compile(r"authentication method requirement|require_auth|client certificate")


def _refuse_old_libpq(url: URL) -> None:
    import psycopg

    if psycopg.pq.version() < SECRETS_FROM_VERSION:
        raise RejectedInput(
            f"{url.render_as_string()}: this libpq cannot keep a password from a server that only a store names: "
            f"{how_to_name(url)}"
        )


def postgresql_engine(url: URL) -> Engine:
    """The engine of a PostgreSQL database; a server that only a store names gets no secret (RejectedInput).

    UsageError where psycopg is not installed.
    """
    if os.environ.get("PGSSLMODE"):
        # how safe a connection has to be is for who connects to say, not for who made the store
        url = url.difference_update_query(["sslmode"])
    # a server that is gone is noticed in seconds; what the URL says comes first
    settings: dict[str, object] = {**KEEPALIVE}
    if "connect_timeout" not in url.query:
        settings["connect_timeout"] = CONNECT_SECONDS
    named = is_named(url)
    try:
        if not named:
            _refuse_old_libpq(url)
            settings |= NO_SECRETS
        engine = create_engine(
            url, poolclass=NullPool, isolation_level="SERIALIZABLE", connect_args=settings
        )
    except ImportError:
        raise UsageError(
            "a catalogue on PostgreSQL needs psycopg: pip install 'labelstore[postgresql]'"
        ) from None

    @event.listens_for(engine, "do_connect")
    def connect(dialect: object, record: object, args: list[Any], named: dict[str, Any]) -> object:
        from labelstore.catalogue.silent_servers import connect_with_deadline

        return connect_with_deadline(*args, **named)

    @event.listens_for(engine, "handle_error")
    def asked_for_a_secret(context: ExceptionContext) -> None:
        if not named and _ASKS.search(str(context.original_exception)) is not None:
            raise RejectedInput(
                f"{url.render_as_string()}: the server asks for a password or the like, which goes to no server that "
                f"only a store names: {how_to_name(url)}"
            ) from None

    @event.listens_for(engine, "begin")
    def begin(conn: Connection) -> None:
        options = conn.get_execution_options()
        if WRITE in options:
            conn.exec_driver_sql(f"SET LOCAL lock_timeout = '{BUSY_SECONDS}s'")
            conn.exec_driver_sql("LOCK TABLE store IN EXCLUSIVE MODE")
        elif CREATE not in options:
            # A snapshot, without the predicate locks that could make a writer fail.
            conn.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")

    return engine
