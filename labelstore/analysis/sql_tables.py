"""What SQL sees of a store: the catalogue's tables (JSON columns are JSON text), and views of the crops."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from labelstore.analysis.arrow_batches import ArrowBatches, arrow_type
from labelstore.analysis.walk import CropQuery
from labelstore.blocks.columns import COLUMNS, OF_GROUND_TRUTH
from labelstore.store.label_outputs import titles_of_store

if TYPE_CHECKING:
    import pyarrow as pa

    from labelstore.store import Store


Types = dict[str, str]
_TEXT, _INT, _FLOAT, _BOOL = "string", "int64", "double", "bool"

TABLES: dict[str, Types] = {
    "images": {
        "image": _INT,
        "key": _TEXT,
        "class": _TEXT,
        "class_id": _INT,
        "width": _INT,
        "height": _INT,
        "digest": _TEXT,
        "bytes": _INT,
        "bad": _TEXT,
    },
    "classes": {"class_id": _INT, "name": _TEXT, "title": _TEXT},
    "teachers": {
        "name": _TEXT,
        "source": _TEXT,
        "architecture": _TEXT,
        "digest": _TEXT,
        "num_classes": _INT,
        "input_size": _INT,
        "mean": _TEXT,
        "std": _TEXT,
        "interpolation": _TEXT,
        "crop_pct": _FLOAT,
        "top1": _FLOAT,
        "versions": _TEXT,
        "facts": _TEXT,
    },
    "plans": {
        "name": _TEXT,
        "num_crops": _INT,
        "images_per_shard": _INT,
        "crops_per_shard": _INT,
        "crops_per_chunk": _INT,
        "stored": _BOOL,
        "parameters": _TEXT,
    },
    "label_sets": {
        "name": _TEXT,
        "plan": _TEXT,
        "teacher": _TEXT,
        "num_classes": _INT,
        "codec": _TEXT,
        "uuid": _TEXT,
        "temperature": _FLOAT,
        "facts": _TEXT,
    },
    "masks": {
        "name": _TEXT,
        "plan": _TEXT,
        "teacher": _TEXT,
        "label_set": _TEXT,
        "num_crops": _INT,
        "rule": _TEXT,
    },
    "shards": {
        "group_name": _TEXT,
        "block": _INT,
        "crop_shard": _INT,
        "num_images": _INT,
        "bytes": _INT,
        "seconds": _FLOAT,
        "device": _TEXT,
        "committed": _FLOAT,
    },
    "runs": {
        "name": _TEXT,
        "folder": _TEXT,
        "label_sets": _TEXT,
        "masks": _TEXT,
        "config": _TEXT,
        "started": _FLOAT,
    },
    "results": {"run": _TEXT, "name": _TEXT, "epoch": _INT, "value": _FLOAT},
}
"""Table -> column -> Arrow type."""


def table_schema(name: str) -> pa.Schema:
    """The columns of a catalogue table."""
    import pyarrow as pa

    return pa.schema([(c, pa.type_for_alias(kind)) for c, kind in TABLES[name].items()])


def catalogue_table(store: Store, name: str) -> pa.Table:
    """The rows of a catalogue table."""
    import pyarrow as pa

    if name == "images":
        return pa.table(_images(store), schema=table_schema(name))
    rows = _ROWS[name](store) if name in _ROWS else _records(getattr(store.catalogue, name).all())
    kept = [{column: _plain(row[column]) for column in TABLES[name]} for row in rows]
    return pa.Table.from_pylist(kept, schema=table_schema(name))


def _images(store: Store) -> dict[str, Any]:
    rows = np.flatnonzero(~store.free)
    facts = {name: column[rows] for name, column in store.image_columns.items()}
    names = np.array([*store.class_names, None], object)
    known = {
        name: [None if value < 0 else value for value in facts[name].tolist()]
        for name in ("class_id", "width", "height", "size")
    }
    digests = [
        bytes(row).hex() if has else None
        for row, has in zip(facts["digest"], facts["has_digest"], strict=True)
    ]
    return {
        "image": rows,
        "key": facts["key"],
        "class": names[facts["class_id"]],
        "class_id": known["class_id"],
        "width": known["width"],
        "height": known["height"],
        "digest": digests,
        "bytes": known["size"],
        "bad": facts["bad"],
    }


def _classes(store: Store) -> list[dict[str, Any]]:
    names = zip(store.class_names, titles_of_store(store), strict=True)
    return [{"class_id": i, "name": name, "title": title} for i, (name, title) in enumerate(names)]


def _shards(store: Store) -> list[dict[str, Any]]:
    return [
        {**vars(row), "group_name": name, "bytes": sum(file.size for file in row.files)}
        for name in store.group_names()
        for row in store.catalogue.ledger.shards(name)
    ]


_ROWS: dict[str, Callable[[Store], list[dict[str, Any]]]] = {
    "classes": _classes,
    "shards": _shards,
}


def _records(rows: Sequence[Any]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]


def _plain(value: object) -> object:
    """JSON text for what is not a plain value."""
    if isinstance(value, (dict, list, tuple)):
        return json.dumps(value, sort_keys=True)
    return value


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
        columns = {int(c) for t, c in _MARK.findall(plan) if int(t) == self.number}
        return tuple(name for i, name in enumerate(self.schema.names) if i in columns)

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

    tables = [
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
            if name.lower() not in {view.name.lower() for view in tables}:
                tables.append(
                    View(
                        name=name,
                        number=len(tables),
                        schema=schema,
                        store=store,
                        label_set=row.name,
                        mask=chosen,
                    )
                )
    return tuple(tables)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _sql_type(arrow: Any) -> str:  # noqa: ANN401 - pyarrow's types have no stubs
    return _SQL_TYPES.get(str(arrow), "VARCHAR")
