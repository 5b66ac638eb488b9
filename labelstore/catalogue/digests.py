"""Every change of a digested table, and the rolling digest that notices a row which changed by itself.

A table's digest is the sum, modulo 2^128, of a 128-bit hash of each row: independent of order, and
kept up to date by adding and subtracting in the transaction that changes the rows. SQLite's own
integrity check misses a fifth of flipped bits, since it knows structure and not content.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import islice
from typing import Any
from zlib import crc32

from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Double,
    Integer,
    Table,
    and_,
    bindparam,
    delete,
    insert,
    select,
    tuple_,
    update,
)

from labelstore.catalogue.schema import DIGESTED, LargeBinary, digests
from labelstore.errors import DamagedShard, UsageError

_MODULUS = 1 << 128
_BATCH = 20_000
_DAMAGED = "catalogue table digests is damaged: restore the catalogue from a copy"

# Made once: SQLAlchemy takes longer to build such a statement than SQLite to run it
_OF_TABLE = select(digests.c.scope, digests.c.num_rows, digests.c.digest).where(
    digests.c.table_name == bindparam("of_table")
)
_OF_SCOPE = _OF_TABLE.where(digests.c.scope == bindparam("of_scope"))
_CHANGE = (
    update(digests)
    .where(digests.c.table_name == bindparam("of_table"), digests.c.scope == bindparam("of_scope"))
    .values(num_rows=bindparam("num_rows"), digest=bindparam("digest"))
)

Row = tuple[Any, ...]


def batch_rows(table: Table) -> int:
    """How many of a table's rows are in memory at once."""
    return int(table.info.get("batch", _BATCH))


def row_hash(row: Row) -> int:
    """128-bit hash of one row's values in column order."""
    # ascii() and not repr(): which characters repr() escapes changes with Python's Unicode tables.
    return int.from_bytes(blake2b(ascii(row).encode(), digest_size=16).digest(), "little")


def rows_hash(rows: Iterable[Row]) -> int:
    """Sum of the rows' hashes modulo 2^128."""
    return sum(map(row_hash, rows)) % _MODULUS


def insert_rows(conn: Connection, table: Table, rows: Iterable[Mapping[str, Any]]) -> None:
    """Insert rows given by column name; columns left out are NULL."""
    columns = [(column.name, _python_type(column)) for column in table.columns]
    insert_tuples(
        conn,
        table,
        (
            tuple(
                None if (value := given.get(name)) is None else kind(value)
                for name, kind in columns
            )
            for given in rows
        ),
    )


def insert_tuples(
    conn: Connection, table: Table, rows: Iterable[Row], *, counted: bool = True
) -> None:
    """Insert rows given as plain values in column order: int, float, str, bytes or None as the columns say.

    `counted` False leaves the digest as it is: for a copy that takes the digests along.
    """
    # Handed to the driver as they are: building SQLAlchemy's parameters takes longer than SQLite's
    # insert.
    preparer = conn.dialect.identifier_preparer
    names = ", ".join(preparer.format_column(column) for column in table.columns)
    mark = "?" if conn.dialect.paramstyle == "qmark" else "%s"
    marks = ", ".join(mark for _ in table.columns)
    statement = f"INSERT INTO {preparer.format_table(table)} ({names}) VALUES ({marks})"
    remaining = iter(rows)
    while batch := list(islice(remaining, batch_rows(table))):
        conn.exec_driver_sql(statement, batch)
        if counted:
            _adjust(conn, table, added=batch, removed=())


def update_rows(conn: Connection, table: Table, changes: Sequence[Mapping[str, Any]]) -> None:
    """Change rows found by their primary key: each mapping holds the key and the columns that change.

    All mappings have the same columns. DamagedShard if a row is not there.
    """
    if not changes:
        return
    keys = [column.name for column in table.primary_key.columns]
    kinds = {column.name: _python_type(column) for column in table.columns}
    values = [
        {name: None if value is None else kinds[name](value) for name, value in change.items()}
        for change in changes
    ]
    before = _rows_by_key(conn, table, [tuple(value[key] for key in keys) for value in values])
    after = []
    for old, value in zip(before, values, strict=True):
        after.append(
            tuple(
                value.get(column.name, kept)
                for column, kept in zip(table.columns, old, strict=True)
            )
        )
    changed = [name for name in values[0] if name not in keys]
    statement = (
        update(table)
        .where(and_(*(table.c[key] == bindparam(f"_{key}") for key in keys)))
        .values({name: bindparam(f"_{name}") for name in changed})
    )
    conn.execute(
        statement, [{f"_{name}": value[name] for name in (*keys, *changed)} for value in values]
    )
    _adjust(conn, table, added=after, removed=before)


def delete_rows(conn: Connection, table: Table, *where: ColumnElement[bool]) -> int:
    """Delete the rows that `where` finds; returns how many."""
    rows = [tuple(row) for row in conn.execute(select(table).where(*where))]
    if rows:
        conn.execute(delete(table).where(*where))
        _adjust(conn, table, added=(), removed=rows)
    return len(rows)


def verified_rows(conn: Connection, table: Table, scope: str | None = None) -> list[Row]:
    """All rows of a table, or of one of its scopes, in key order; DamagedShard unless they match the digest."""
    rows: list[Row] = []
    for part in verified_batches(conn, table, scope):
        rows.extend(part)
    return rows


def verified_batches(
    conn: Connection, table: Table, scope: str | None = None
) -> Iterator[list[Row]]:
    """`verified_rows` a few thousand at a time. Only after the last batch is it known whether all are sound."""
    query = select(table).order_by(*table.primary_key.columns)
    if scope is not None:
        query = query.where(table.c[table.info["scope"]] == scope)
    expected_rows, expected = _recorded(conn, table, scope) or (0, 0)
    count, total = 0, 0
    for part in conn.execute(
        query, execution_options={"yield_per": batch_rows(table)}
    ).partitions():
        rows = [tuple(row) for row in part]
        count += len(rows)
        total += rows_hash(rows)
        yield rows
    if (count, total % _MODULUS) != (expected_rows, expected):
        raise _mismatch(table, scope, count, expected_rows)


def check_num_rows(conn: Connection, table: Table, scope: str, count: int) -> None:
    """DamagedShard unless so many rows of a scope were written: a lost row is noticed without reading the others."""
    expected, _ = _recorded(conn, table, scope) or (0, 0)
    if count != expected:
        raise _mismatch(table, scope, count, expected)


def num_rows(conn: Connection, table: Table) -> int:
    """Rows of a table as the digest counts them, without reading them."""
    recorded = _recorded(conn, table, None)
    if recorded is None and conn.execute(select(table).limit(1)).first() is not None:
        raise DamagedShard(
            f"catalogue table {table.name} has rows and no digest: restore the catalogue from a copy"
        )
    return recorded[0] if recorded else 0


def digest_text(conn: Connection, *tables: Table, scope: str | None = None) -> str:
    """Rows and digests of tables, or of one of their scopes, as written down, in one hexadecimal text; reads no row."""
    recorded = (_recorded(conn, table, scope) or (0, 0) for table in tables)
    return " ".join(f"{count:x}-{total:032x}" for count, total in recorded)


def verify_tables(conn: Connection, tables: Iterable[Table] = DIGESTED) -> None:
    """Read every row of these tables; DamagedShard names the first that does not match its digest."""
    for table in tables:
        for _ in verified_batches(conn, table):
            pass


def write_digests(conn: Connection, table: Table, batches: Iterable[Sequence[Row]]) -> None:
    """Write down the digest of rows that are in a table without one: after a revision has changed them."""
    for rows in batches:
        _adjust(conn, table, added=rows, removed=())


def _python_type(column: Column[Any]) -> Callable[[Any], Any]:
    # What the database gives back has to hash as what was put in: 0 and 0.0 do not.
    if isinstance(column.type, Boolean):
        return bool
    if isinstance(column.type, Integer):
        return int
    if isinstance(column.type, Double):
        return _double
    return bytes if isinstance(column.type, LargeBinary) else str


def _double(value: Any) -> float:  # noqa: ANN401 - a number of any kind
    number = float(value)
    if math.isnan(number):
        raise UsageError("NaN cannot be kept in the catalogue: SQLite has no such number")
    return number + 0.0  # SQLite has no -0.0


def _rows_by_key(conn: Connection, table: Table, keys: Sequence[Row]) -> list[Row]:
    columns = list(table.primary_key.columns)
    positions = [list(table.columns).index(column) for column in columns]
    rows_by_key: dict[Row, Row] = {}
    for start in range(0, len(keys), 500):
        where = tuple_(*columns).in_(keys[start : start + 500])
        rows = [tuple(row) for row in conn.execute(select(table).where(where))]
        rows_by_key |= {tuple(row[position] for position in positions): row for row in rows}
    if missing := [key for key in keys if key not in rows_by_key]:
        raise DamagedShard(
            f"catalogue table {table.name} has no row {missing[0]}: restore the catalogue from a copy"
        )
    return [rows_by_key[key] for key in keys]


def _mismatch(table: Table, scope: str | None, count: int, expected: int) -> DamagedShard:
    which = table.name if scope is None else f"{table.name} of {scope}"
    return DamagedShard(
        f"catalogue table {which}: {count} rows do not match their digest "
        f"({expected} rows written): restore the catalogue from a copy"
    )


def _adjust(
    conn: Connection, table: Table, *, added: Sequence[Row], removed: Sequence[Row]
) -> None:
    scope_name = table.info.get("scope")
    position = (
        None if scope_name is None else [column.name for column in table.columns].index(scope_name)
    )
    change: dict[str, tuple[int, int]] = {}
    for rows, sign in ((added, 1), (removed, -1)):
        parts: dict[str, list[Row]] = {}
        for row in rows:
            parts.setdefault("" if position is None else row[position], []).append(row)
        for scope, part in parts.items():
            count, total = change.get(scope, (0, 0))
            change[scope] = (count + sign * len(part), total + sign * rows_hash(part))
    for scope, (count, total) in change.items():
        recorded = _recorded(conn, table, scope)
        there, digest = recorded or (0, 0)
        values = {
            "num_rows": there + count,
            "digest": _written(table.name, scope, there + count, (digest + total) % _MODULUS),
        }
        if recorded is None:
            conn.execute(insert(digests).values(table_name=table.name, scope=scope, **values))
        else:
            conn.execute(_CHANGE, {"of_table": table.name, "of_scope": scope, **values})


def _recorded(conn: Connection, table: Table, scope: str | None) -> tuple[int, int] | None:
    """(rows, sum of their hashes) as written down for a scope or, with None, all of a table's scopes."""
    query = _OF_TABLE if scope is None else _OF_SCOPE
    digest_rows = conn.execute(query, {"of_table": table.name, "of_scope": scope}).all()
    count, total = 0, 0
    for part, rows, digest in digest_rows:
        value = _parsed(digest)
        if digest != _written(table.name, part, rows, value):
            raise DamagedShard(_DAMAGED)
        count += rows
        total += value
    return (count, total % _MODULUS) if digest_rows else None


def _written(table: str, scope: str, rows: int, total: int) -> str:
    # A checksum of its own, since the number of rows is also asked for without reading them.
    plain = f"{total:032x}"
    return f"{plain}{crc32(ascii((table, scope, rows, plain)).encode()):08x}"


def _parsed(digest: object) -> int:
    try:
        return int(str(digest)[:32], 16)
    except ValueError:
        raise DamagedShard(_DAMAGED) from None
