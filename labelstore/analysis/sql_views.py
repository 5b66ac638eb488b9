"""What a query may name: catalogue tables and views of crops, attached to DuckDB with only the columns it scans.

Every view stands on a stream or table whose columns have names that occur nowhere else (`_t3_c17_`), so that the
text of a query's plan tells which of them it scans.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from labelstore.analysis.arrow_batches import ArrowBatches, arrow_type
from labelstore.analysis.sql_tables import TABLES, catalogue_table, table_schema
from labelstore.analysis.walk import CropQuery
from labelstore.blocks.columns import COLUMNS, OF_GROUND_TRUTH

if TYPE_CHECKING:
    import pyarrow as pa

    from labelstore.store import Store

_MARK = re.compile(r"_t(\d+)_c(\d+)_")
_SQL_TYPES = {
    "int64": "BIGINT",
    "int32": "INTEGER",
    "float": "FLOAT",
    "double": "DOUBLE",
    "bool": "BOOLEAN",
}


@dataclass(frozen=True, kw_only=True)
class View:
    """A table as a query sees it, before anything of it is read."""

    name: str
    number: int
    schema: pa.Schema
    store: Store
    label_set: str | None = None
    """Its crops; None for a catalogue table."""
    mask: str | None = None

    def mark(self, column: str) -> str:
        """The name of a column in the plan."""
        return f"_t{self.number}_c{self.schema.get_field_index(column)}_"

    def scanned(self, plan: str) -> tuple[str, ...]:
        """The columns that a plan mentions."""
        found = {int(c) for t, c in _MARK.findall(plan) if int(t) == self.number}
        return tuple(name for i, name in enumerate(self.schema.names) if i in found)

    def attach(self, connection: Any, rows: Any, columns: Collection[str]) -> None:  # noqa: ANN401 - DuckDB's and Arrow's
        """Make the view on `rows`, which have these columns under their marks; NULL for the others."""
        connection.register(f"_t{self.number}", rows)
        selected = ", ".join(
            f"{self.mark(f.name) if f.name in columns else f'NULL::{_sql_type(f.type)}'} AS {_quoted(f.name)}"
            for f in self.schema
        )
        connection.execute(
            f"CREATE OR REPLACE VIEW {_quoted(self.name)} AS SELECT {selected} FROM _t{self.number}"
        )

    def attach_empty(self, connection: Any) -> None:  # noqa: ANN401 - DuckDB is optional
        """Make the view with all its columns and no rows."""
        import pyarrow as pa

        marked = pa.schema([f.with_name(self.mark(f.name)) for f in self.schema])
        self.attach(connection, marked.empty_table(), self.schema.names)

    def attach_rows(self, connection: Any, columns: tuple[str, ...]) -> ArrowBatches | None:  # noqa: ANN401
        """Make the view with these columns of its rows; crops come as the stream that is given back."""
        if self.label_set is None:
            table = catalogue_table(self.store, self.name).select(columns)
            self.attach(connection, table.rename_columns([self.mark(c) for c in columns]), columns)
            return None
        labels = self.store.label_set(self.label_set)
        # without a mask there is no region, and of outputs that are no classes no ground truth
        unknown = set() if labels.outputs_are_classes else OF_GROUND_TRUTH
        known = [
            c for c in columns if c not in unknown and (self.mask or COLUMNS[c].source != "mask")
        ] or ["image"]
        query = CropQuery.of(labels, known, mask=self.mask)
        stream = ArrowBatches(query, {c: self.mark(c) for c in known})
        self.attach(connection, stream, known)
        return stream


def views(store: Store, mask: str | None = None, label_set: str | None = None) -> tuple[View, ...]:
    """Everything that a query may name. The column `region` is of `mask`, or of the teacher's only mask.

    `crops` is `label_set`, or the only one that has labels; where there are several, nothing has that name.
    """
    import pyarrow as pa

    found = [
        View(name=t, number=i, schema=table_schema(t), store=store) for i, t in enumerate(TABLES)
    ]
    if mask is not None:
        store.mask(mask)
    schema = pa.schema([(name, arrow_type(name)) for name in COLUMNS])
    # one that is registered, but of which no crop is labelled yet, has no view
    rows = [row for row in store.catalogue.label_sets.all() if row.is_settled]
    if label_set is None and len(rows) == 1:
        label_set = rows[0].name
    elif label_set is not None:
        label_set = store.label_set(label_set).name
    for row in rows:
        own = [
            m.name
            for m in store.catalogue.masks.all()
            if (m.plan, m.teacher) == (row.plan, row.teacher)
        ]
        chosen = mask if mask in own else own[0] if mask is None and len(own) == 1 else None
        for name in (*(["crops"] if row.name == label_set else []), f"crops_{row.name}"):
            # DuckDB does not tell upper from lower case: the first of such a name has it
            if name.lower() not in {view.name.lower() for view in found}:
                found.append(
                    View(
                        name=name,
                        number=len(found),
                        schema=schema,
                        store=store,
                        label_set=row.name,
                        mask=chosen,
                    )
                )
    return tuple(found)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _sql_type(arrow: Any) -> str:  # noqa: ANN401 - pyarrow's types have no stubs
    return _SQL_TYPES.get(str(arrow), "VARCHAR")
