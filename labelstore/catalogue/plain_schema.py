"""Which SQL a SQLite file may hold about itself: plain tables and indexes, nothing that computes.

A file's schema is text that SQLite parses whenever it is opened, and runs: a view or generated column when it is
read, a trigger, CHECK, default or index on an expression when it is written. Looking for such words by a pattern
can be evaded (`CREATE/**/VIRTUAL TABLE`); so every word and sign has to be one that plain statements are made of.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

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
