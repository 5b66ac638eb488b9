"""Teachers, plans, label sets, masks, runs: records kept by name, written once, never silently replaced."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    Boolean,
    Connection,
    Double,
    Integer,
    LargeBinary,
    Table,
    Text,
    select,
)

from labelstore.catalogue.digests import Row, insert_rows, update_rows, verified_rows
from labelstore.errors import ConflictError, DamagedShard, UsageError

R = TypeVar("R")

_TYPES: dict[type, type | tuple[type, ...]] = {
    Integer: int,
    BigInteger: int,
    Boolean: bool,
    Double: (int, float),
    Text: str,
    LargeBinary: bytes,
}
"""What the database gives for a column of each type; SQLite lets any value stand in any column."""


def json_text(value: object) -> str:
    """Canonical JSON: equal values give equal text."""
    try:
        return json.dumps(
            value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True
        )
    except (TypeError, ValueError) as error:
        raise UsageError(f"{value!r} cannot be kept in the catalogue as JSON: {error}") from None


def to_columns(table: Table, record: object) -> dict[str, Any]:
    """A record's fields as column values."""
    assert is_dataclass(record)
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    for column in table.columns:
        if column.info.get("json"):
            value = values[column.name]
            values[column.name] = json_text(dict(value) if isinstance(value, Mapping) else value)
    return values


def from_columns(kind: type[R], table: Table, row: Row) -> R:
    """The record of one row in column order; JSON lists come back as tuples.

    DamagedShard for a value of another type than its column's, as only a foreign hand writes.
    """
    values = {column.name: value for column, value in zip(table.columns, row, strict=True)}
    try:
        for column in table.columns:
            value = values[column.name]
            if column.info.get("json"):
                value = json.loads(value)
                values[column.name] = tuple(value) if isinstance(value, list) else value
            elif not isinstance(value, _TYPES[type(column.type)]) and not (
                value is None and column.nullable
            ):
                raise TypeError(f"{value!r}"[:40])
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedShard(
            f"catalogue table {table.name}: column {column.name} holds what nobody wrote there ({error}): "
            "restore the catalogue from a copy"
        ) from None
    return kind(**values)


def all_records(conn: Connection, table: Table, kind: type[R]) -> tuple[R, ...]:
    """Every record of a table by name, checked against the table's digest."""
    return tuple(from_columns(kind, table, row) for row in verified_rows(conn, table))


def check_name(name: str) -> None:
    """UsageError unless the name of a plan, label set or mask can also be a folder's."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) is None:
        raise UsageError(
            f"name {name!r}: use 1 to 100 letters, digits, dots, hyphens and underscores, a letter or digit first"
        )


def add_record(
    conn: Connection, table: Table, record: R, *, free: frozenset[str] = frozenset()
) -> R:
    """Add a record, or find it there already; returns what the catalogue holds.

    ConflictError names every field that differs; fields in `free` may differ, and the ones already
    there win.
    """
    given = to_columns(table, record)
    keys = [column.name for column in table.primary_key.columns]
    found = conn.execute(
        select(table).where(*(table.c[key] == given[key] for key in keys))
    ).one_or_none()
    if found is None:
        insert_rows(conn, table, [given])
        return record
    stored = from_columns(type(record), table, tuple(found))
    there = to_columns(table, stored)
    differences = [
        f"{name} {there[name]!s}, not {given[name]!s}"
        for name in given
        if name not in free and there[name] != given[name]
    ]
    if differences:
        noun = table.name.removesuffix("s").replace("_", " ")
        raise ConflictError(
            f"{noun} {'/'.join(str(given[key]) for key in keys)!r} is in the store with {'; '.join(differences)}: "
            "choose another name, or give the same values"
        )
    return stored


def change_record(conn: Connection, table: Table, name: str, changes: Mapping[str, Any]) -> None:
    """Change columns of one record."""
    values = {
        key: json_text(dict(value) if isinstance(value, Mapping) else value)
        if table.c[key].info.get("json")
        else value
        for key, value in changes.items()
    }
    update_rows(conn, table, [{"name": name, **values}])
