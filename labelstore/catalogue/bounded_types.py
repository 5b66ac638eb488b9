"""Text and bytes of which a server sends no more than any cell of ours holds.

SQLite has such a limit of its own (`engines.MAX_CELL_BYTES`). PostgreSQL has none, and libpq takes a whole row into
memory before anybody can look at it: so every query asks for the beginning only. What is cut no longer matches the
digest of its table, and is refused as damage.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, TypeDecorator
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
        """What a query asks for."""
        return beginning(column, type_=self)


class LargeBinary(TypeDecorator[bytes]):
    """Bytes of a bounded length."""

    impl = AnyBytes
    cache_ok = True

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """What a query asks for."""
        return beginning(column, type_=self)
