"""The tables of the catalogue, the same on SQLite and PostgreSQL, with text and bytes of bounded length.

Columns whose `info` says `json` hold canonical JSON text (sorted keys, no spaces), so that equal
values are equal bytes and a table's digest (digests.py) does not depend on the database. `scope`
names the column, if any, by which a table's digest is kept in parts; `batch` says how many rows are
in memory at once where rows are large.

SQLite has a limit of its own on the size of a cell (`engines.MAX_CELL_BYTES`). PostgreSQL has none, and libpq takes a
whole row into memory before anybody can look at it: so every query asks for the beginning only. What is cut no longer
matches the digest of its table, and is refused as damage.

A SQLite file's schema is text that SQLite parses whenever it is opened, and runs: a view or generated column when it is
read, a trigger, CHECK, default or index on an expression when it is written. Looking for such words by a pattern
can be evaded (`CREATE/**/VIRTUAL TABLE`); so every word and sign has to be one that plain statements are made of.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Double,
    Integer,
    MetaData,
    Table,
    TypeDecorator,
)
from sqlalchemy import LargeBinary as AnyBytes
from sqlalchemy import Text as AnyText
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction

MAX_SENT = 1 << 24
"""Characters or bytes: 64 MiB of UTF-8 at most, as in a SQLite catalogue."""


class beginning(GenericFunction[Any]):
    """The first `MAX_SENT` characters or bytes of a column on PostgreSQL; the column itself on SQLite."""

    inherit_cache = True


@compiles(beginning)
def _whole(element: beginning, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401 - as SQLAlchemy has it
    return compiler.process(element.clauses, **options)


@compiles(beginning, "postgresql")
def _cut(element: beginning, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401 - as SQLAlchemy has it
    return f"substr({compiler.process(element.clauses, **options)}, 1, {MAX_SENT})"


class Text(TypeDecorator[str]):
    """Text of a bounded length."""

    impl = AnyText
    cache_ok = True

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return what a query asks for."""
        return beginning(column, type_=self)


class LargeBinary(TypeDecorator[bytes]):
    """Bytes of a bounded length."""

    impl = AnyBytes
    cache_ok = True

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return what a query asks for."""
        return beginning(column, type_=self)


FORMAT_VERSION = 2
"""Newest store format that this version reads and writes."""

BASELINE = "0002"
"""Alembic revision that `create` makes."""

metadata = MetaData()


def _json(name: str) -> Column[str]:
    return Column(name, Text, nullable=False, info={"json": True})


store = Table(
    "store",
    metadata,
    Column("uuid", Text, primary_key=True),
    Column("format_version", Integer, nullable=False),
    Column("created", Double, nullable=False),
)

alembic_version = Table(
    "alembic_version",
    metadata,
    Column("version_num", Text, primary_key=True),
)

digests = Table(
    "digests",
    metadata,
    Column("table_name", Text, primary_key=True),
    Column("scope", Text, primary_key=True),
    Column("num_rows", BigInteger, nullable=False),
    Column("digest", Text, nullable=False),
    sqlite_with_rowid=False,
)

classes = Table(
    "classes",
    metadata,
    Column("class_id", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False, unique=True),
)

# 1.28 million images at ImageNet's size: 1,024 of them in a row, see image_blocks.py. The first columns are
# read without the rest.
image_blocks = Table(
    "image_blocks",
    metadata,
    Column("block", Integer, primary_key=True, autoincrement=False),
    Column("num_rows", Integer, nullable=False),
    Column("num_images", Integer, nullable=False),
    Column("checksum", BigInteger, nullable=False),
    Column("key_crc", LargeBinary, nullable=False),
    Column("key", LargeBinary, nullable=False),
    Column("class_id", LargeBinary, nullable=False),
    Column("size", LargeBinary, nullable=False),
    Column("mtime_ns", LargeBinary, nullable=False),
    Column("width", LargeBinary),
    Column("height", LargeBinary),
    Column("digest", LargeBinary),
    Column("bad", Text),
    info={"batch": 64},
)

teachers = Table(
    "teachers",
    metadata,
    Column("name", Text, primary_key=True),
    Column("source", Text, nullable=False),
    Column("architecture", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("num_classes", Integer, nullable=False),
    Column("input_size", Integer, nullable=False),
    _json("mean"),
    _json("std"),
    Column("interpolation", Text, nullable=False),
    Column("crop_pct", Double, nullable=False),
    Column("top1", Double),
    _json("versions"),
    _json("facts"),
)

plans = Table(
    "plans",
    metadata,
    Column("name", Text, primary_key=True),
    Column("num_crops", Integer, nullable=False),
    Column("images_per_shard", Integer, nullable=False),
    Column("crops_per_shard", Integer, nullable=False),
    Column("crops_per_chunk", Integer, nullable=False),
    Column("stored", Boolean, nullable=False),
    _json("parameters"),
)

label_sets = Table(
    "label_sets",
    metadata,
    Column("name", Text, primary_key=True),
    Column("plan", Text, nullable=False),
    Column("teacher", Text, nullable=False),
    Column("num_classes", Integer, nullable=False),
    _json("codec"),
    Column("uuid", Text, nullable=False),
    Column("temperature", Double, nullable=False),
    _json("facts"),
)

masks = Table(
    "masks",
    metadata,
    Column("name", Text, primary_key=True),
    Column("plan", Text, nullable=False),
    Column("teacher", Text, nullable=False),
    Column("label_set", Text, nullable=False),
    Column("num_crops", Integer, nullable=False),
    _json("rule"),
)

# A lease's row stays after its release: the fencing number must never go back.
leases = Table(
    "leases",
    metadata,
    Column("group_name", Text, primary_key=True),
    Column("block", Integer, primary_key=True, autoincrement=False),
    Column("owner", Text, nullable=False),
    Column("expires", Double, nullable=False),
    Column("fence", BigInteger, nullable=False),
    info={"scope": "group_name"},
    sqlite_with_rowid=False,
)

shards = Table(
    "shards",
    metadata,
    Column("group_name", Text, primary_key=True),
    Column("block", Integer, primary_key=True, autoincrement=False),
    Column("crop_shard", Integer, primary_key=True, autoincrement=False),
    Column("num_images", Integer, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("device", Text, nullable=False),
    Column("committed", Double, nullable=False),
    Column("files", LargeBinary, nullable=False),
    info={"scope": "group_name"},
    sqlite_with_rowid=False,
)

metadata_files = Table(
    "metadata_files",
    metadata,
    Column("key", Text, primary_key=True),
    Column("digest", Text, nullable=False),
)

metadata_intents = Table(
    "metadata_intents",
    metadata,
    Column("token", Integer, primary_key=True, autoincrement=False),
    Column("key", Text, primary_key=True),
    Column("old_digest", Text, nullable=False),
    Column("new_digest", Text, nullable=False),
    sqlite_with_rowid=False,
)

runs = Table(
    "runs",
    metadata,
    Column("name", Text, primary_key=True),
    Column("folder", Text, nullable=False),
    _json("label_sets"),
    _json("masks"),
    _json("config"),
    Column("started", Double, nullable=False),
)

results = Table(
    "results",
    metadata,
    Column("run", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("value", Double, nullable=False),
    sqlite_with_rowid=False,
)

DIGESTED = tuple(
    table for table in metadata.sorted_tables if table.name not in ("digests", "alembic_version")
)
"""Tables whose rows are covered by a digest: all that hold facts."""

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
