"""URLs of catalogues, and what the engines of the two databases share."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from labelstore.errors import UsageError

BUSY_SECONDS = 60
"""How long a transaction waits for other writers before it gives up."""


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
