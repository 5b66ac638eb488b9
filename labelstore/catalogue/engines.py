"""Where a catalogue is, and SQLite's engine: durable, and trusting nothing in the file's schema.

A SQLite file's schema is text that SQLite parses whenever it is opened, and runs: a view or generated column when it is
read, a trigger, CHECK, default or index on an expression when it is written. Looking for such words by a pattern
can be evaded (`CREATE/**/VIRTUAL TABLE`); so every word and sign has to be one that plain statements are made of.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Connection, Engine, NullPool, create_engine, event
from sqlalchemy.engine import URL, ExceptionContext, make_url
from sqlalchemy.exc import ArgumentError

from labelstore.errors import DamagedShard, UsageError

BUSY_SECONDS = 60
"""How long a transaction waits for other writers before it gives up."""


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


MAX_STATEMENTS = 1000
MAX_CHARACTERS = 20_000
"""Most characters of one statement; ours have at most 500."""

# SQLite keeps what it was given from the object's name on, and writes these words itself
_BEGINNINGS = {"table": ("CREATE TABLE ",), "index": ("CREATE INDEX ", "CREATE UNIQUE INDEX ")}
_TOKEN = re.compile(
    r"""\s+|"[^"\x00]*"|[A-Za-z_][A-Za-z0-9_]*|[0-9]+(?:\.[0-9]+)?|'[^'\x00]*'|[(),]"""
)
_COMPUTING = {"AS", "CHECK", "COLLATE", "GENERATED", "REFERENCES", "SELECT", "WHERE"}
# of tables: a list of columns, and inside it PRIMARY KEY (...), UNIQUE (...), VARCHAR(20)
_MOST_DEEPLY = {"table": 2, "index": 1}


def first_foreign(statements: Iterable[Sequence[object]]) -> str | None:
    """Name of the first of these rows of `sqlite_master` (type, name, sql) that is not plain; None where all are."""
    return next((str(name) for kind, name, sql in statements if not is_plain(kind, sql)), None)


def is_plain(kind: object, sql: object) -> bool:
    """Is a row of `sqlite_master` a table or an index without anything that is computed?

    >>> is_plain("table", "CREATE TABLE a (x TEXT NOT NULL, PRIMARY KEY (x))")
    True
    >>> is_plain("table", "CREATE TABLE a (x TEXT, y AS (x))"), is_plain("index", "CREATE INDEX i ON a (hex(x))")
    (False, False)
    """
    if kind not in ("table", "index"):
        return False
    if kind == "index" and sql is None:
        return True  # of a PRIMARY KEY or UNIQUE: there is no statement
    if not isinstance(sql, str) or not sql.startswith(_BEGINNINGS[str(kind)]):
        return False
    if len(sql) > MAX_CHARACTERS:
        return False
    place, depth = 0, 0
    while place < len(sql):
        token = _TOKEN.match(sql, place)
        if token is None or token[0].upper() in _COMPUTING:
            return False
        depth += {"(": 1, ")": -1}.get(token[0], 0)
        if depth > _MOST_DEEPLY[str(kind)]:
            return False
        place = token.end()
    return True
