"""Teachers, plans, label sets, masks, runs: rows kept by name, written once, never silently replaced."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain, count
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, Table, select

from labelstore.catalogue.connection import Database
from labelstore.catalogue.digests import insert_rows, update_rows
from labelstore.catalogue.metadata_files import mark_metadata
from labelstore.catalogue.record_columns import all_records, from_columns, json_text, to_columns
from labelstore.catalogue.records import ResultRow, TeacherRow
from labelstore.catalogue.schema import results, teachers
from labelstore.errors import ConflictError, UsageError

R = TypeVar("R")


class NamedRows(Generic[R]):
    """The rows of one table that are kept by name.

    Fields in `free` may differ where a row is added again, and those that are there already win; `changing`
    may change later. Where the arrays' metadata follows from the rows, `described` says of a row whether it
    does yet; such a name is a folder's, too.
    """

    def __init__(
        self,
        database: Database,
        table: Table,
        kind: type[R],
        *,
        free: frozenset[str] = frozenset(),
        changing: frozenset[str] = frozenset(),
        described: Callable[[R], bool] | None = None,
    ) -> None:
        self._database = database
        self._table = table
        self._kind = kind
        self._free = free
        self._changing = changing
        self._described = described

    def all(self) -> tuple[R, ...]:
        """All rows by name."""
        with self._database.reading() as conn:
            return all_records(conn, self._table, self._kind)

    def add(self, row: R) -> R:
        """Add a row, or find it there already; returns what the catalogue holds.

        ConflictError names every field that differs.
        """
        given = to_columns(self._table, row)

        def work(conn: Connection) -> R:
            held = self._held(conn, row)
            if held is None:
                insert_rows(conn, self._table, [given])
                if self._described is not None and self._described(row):
                    mark_metadata(conn)
                return row
            return held

        return self._database.write(work)

    def check(self, row: R) -> None:
        """Raise what `add` would raise for the row; nothing is written."""
        with self._database.reading() as conn:
            self._held(conn, row)

    def _held(self, conn: Connection, row: R) -> R | None:
        """The row as the catalogue holds it; None where it can be added."""
        given = to_columns(self._table, row)
        if self._described is not None:
            check_name(given["name"])
        held = held_record(conn, self._table, row)
        if held is not None:
            _refuse_other(self._table, to_columns(self._table, held), given, self._free)
        elif self._described is not None:
            self._refuse_other_case(conn, given["name"])
        return held

    def _refuse_other_case(self, conn: Connection, name: str) -> None:
        """ConflictError for a name whose folder is another row's on a disk that does not tell A from a."""
        names = conn.execute(select(self._table.c.name)).scalars()
        same = next((held for held in names if held.casefold() == name.casefold()), None)
        if same is not None:
            noun = self._table.name.removesuffix("s").replace("_", " ")
            raise ConflictError(
                f"{noun} {name!r} differs from {same!r}, which is in the store, in upper and lower case alone: on many "
                "disks they are one folder; choose another name"
            )

    def change(self, conn: Connection, name: str, **values: object) -> None:
        """Change of one row what may change: more crops of a plan or a mask, a label set's codec, a teacher's
        figures."""
        assert values.keys() <= self._changing
        change_record(conn, self._table, name, values)
        if self._described is not None:
            mark_metadata(conn)


class Teachers(NamedRows[TeacherRow]):
    """The teachers: their `identity` tells them apart, whatever they are called."""

    def __init__(self, database: Database) -> None:
        super().__init__(
            database,
            teachers,
            TeacherRow,
            free=frozenset({"top1", "versions", "facts"}),
            changing=frozenset({"top1", "facts"}),
        )

    def register(self, row: TeacherRow, label_set: str) -> str:
        """The name under which the store knows this teacher.

        A new one keeps its name, or gets the label set's where that name is another's.
        """
        held = self.all()
        for known in held:
            if known.identity == row.identity:
                return known.name
        taken = {known.name for known in held}
        own = f"{row.name}-{row.digest[:8]}"
        free = chain((row.name, label_set, own), (f"{own}-{number}" for number in count(2)))
        name = next(candidate for candidate in free if candidate not in taken)
        return self.add(replace(row, name=name)).name


class Results:
    """The figures of the runs, by run, name and epoch."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self, run: str | None = None) -> tuple[ResultRow, ...]:
        """All figures, or one run's."""
        with self._database.reading() as conn:
            found = all_records(conn, results, ResultRow)
        return tuple(row for row in found if run is None or row.run == run)

    def add(self, row: ResultRow) -> ResultRow:
        """Add a figure; measured again, the later value takes the place of the earlier one."""

        def work(conn: Connection) -> ResultRow:
            held = held_record(conn, results, row)
            if held is None:
                insert_rows(conn, results, [to_columns(results, row)])
            elif held != row:
                update_rows(conn, results, [to_columns(results, row)])
            return row

        return self._database.write(work)


def check_name(name: str) -> None:
    """UsageError unless the name of a plan, label set or mask can also be a folder's."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) is None:
        raise UsageError(
            f"name {name!r}: use 1 to 100 letters, digits, dots, hyphens and underscores, a letter or digit first"
        )


def held_record(conn: Connection, table: Table, record: R) -> R | None:
    """The record that has this one's key in the catalogue, or None."""
    keys = [(column, getattr(record, column.name)) for column in table.primary_key.columns]
    query = select(table).where(*(column == value for column, value in keys))
    found = conn.execute(query).one_or_none()
    return None if found is None else from_columns(type(record), table, tuple(found))


def change_record(conn: Connection, table: Table, name: str, changes: Mapping[str, Any]) -> None:
    """Change columns of one record."""
    values = {
        key: json_text(dict(value) if isinstance(value, Mapping) else value)
        if table.c[key].info.get("json")
        else value
        for key, value in changes.items()
    }
    update_rows(conn, table, [{"name": name, **values}])


def _refuse_other(
    table: Table, there: Mapping[str, Any], given: Mapping[str, Any], free: frozenset[str]
) -> None:
    differences = [
        f"{name} {there[name]!s}, not {given[name]!s}"
        for name in given
        if name not in free and there[name] != given[name]
    ]
    if differences:
        noun = table.name.removesuffix("s").replace("_", " ")
        raise ConflictError(
            f"{noun} {given['name']!r} is in the store with {'; '.join(differences)}: "
            "choose another name, or give the same values"
        )
