"""Records as rows: a dataclass's fields as the values of a table's columns, JSON text where a column says so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache, partial
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from sqlalchemy import BigInteger, Boolean, Column, Connection, Double, Integer, Table

from labelstore.catalogue.digests import Row, verified_rows
from labelstore.catalogue.schema import LargeBinary, Text
from labelstore.errors import DamagedShard, UsageError

R = TypeVar("R")

MAX_NUMBER = 1e300
"""Above every number of ours; NaN and infinities are not below it."""

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


def all_records(conn: Connection, table: Table, kind: type[R]) -> tuple[R, ...]:
    """Every record of a table by name, checked against the table's digest."""
    return tuple(map(partial(from_columns, kind, table), verified_rows(conn, table)))


def records_by_name(conn: Connection, table: Table, kind: type[R]) -> dict[str, R]:
    """`all_records` by their names."""
    return {row.name: row for row in all_records(conn, table, kind)}  # type: ignore[attr-defined]


def from_columns(kind: type[R], table: Table, row: Row) -> R:
    """The record of one row in column order; JSON lists come back as tuples.

    DamagedShard for a value of another type than its column's or its field's, as only a foreign hand writes.
    """
    check_types(table, row)
    values = {column.name: value for column, value in zip(table.columns, row, strict=True)}
    hints = _hints(kind)  # type: ignore[arg-type]  # a class can be hashed, of whatever type R is
    for column in table.columns:
        if not column.info.get("json"):
            continue
        try:
            value = json.loads(values[column.name])
        except (ValueError, RecursionError) as error:
            raise _foreign(table, column, error) from None
        if not fits(value, hints[column.name]):
            raise _foreign(table, column, f"{value!r}"[:40])
        values[column.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


@lru_cache
def _hints(kind: type) -> Mapping[str, Any]:
    return get_type_hints(kind)


def check_types(table: Table, row: Row) -> None:
    """DamagedShard for a value of another type than its column's: SQLite lets any value stand in any column."""
    for column, value in zip(table.columns, row, strict=True):
        if not isinstance(value, _TYPES[type(column.type)]) and not (
            value is None and column.nullable
        ):
            raise _foreign(table, column, f"{value!r}"[:40])


def _foreign(table: Table, column: Column[Any], what: object) -> DamagedShard:
    return DamagedShard(
        f"catalogue table {table.name}: column {column.name} holds what nobody wrote there ({what}): "
        "restore the catalogue from a copy"
    )


def fits(value: object, hint: Any) -> bool:  # noqa: ANN401 - a type, or what typing makes of one
    """Whether a JSON value is of a type: a mapping, a tuple (a list in JSON), a plain value, or one of several."""
    if hint is Any:
        return True
    inner = get_args(hint)
    if isinstance(hint, UnionType):
        return any(fits(value, each) for each in inner)
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            return False
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        return len(kinds) == len(value) and all(map(fits, value, kinds))
    if get_origin(hint) is Mapping:
        return isinstance(value, dict) and all(fits(part, inner[1]) for part in value.values())
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        # Infinity and NaN are no JSON, but Python reads them
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return abs(value) < MAX_NUMBER
    return isinstance(value, hint)
