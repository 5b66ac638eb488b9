"""The catalogue's tables as Arrow tables, for SQL; JSON columns are JSON text."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

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
