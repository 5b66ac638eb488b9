"""Records as rows: a dataclass's fields as the values of a table's columns, JSON text where a column says so."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from sqlalchemy import BigInteger, Boolean, Double, Integer, LargeBinary, Table, Text

from labelstore.catalogue.digests import Row
from labelstore.errors import DamagedShard, UsageError

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


def records(kind: type[R], table: Table, rows: Iterable[Row]) -> tuple[R, ...]:
    """`from_columns` of several rows."""
    return tuple(from_columns(kind, table, row) for row in rows)


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
