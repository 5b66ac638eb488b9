"""What a group's name stands for: its table, and the identity that a label set, mask or plan of the same name has
not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Table, select

from labelstore.catalogue.record_columns import json_text, to_columns
from labelstore.catalogue.records import MaskRow
from labelstore.catalogue.tables import label_sets, masks, plans


def named(group: str) -> tuple[Table, str]:
    """The table that keeps a group's name, and the name."""
    kind, _, name = group.partition("/")
    return {"labels": label_sets, "masks": masks, "crops": plans}[kind], name


def identity(conn: Connection, group: str) -> str:
    """What tells a label set, mask or plan from another of its name; "" where none is registered."""
    table, name = named(group)
    if table is label_sets:
        return _uuid(conn, name)
    row = conn.execute(select(table).where(table.c.name == name)).mappings().one_or_none()
    if row is None:
        return ""
    return _described(row, _uuid(conn, row["label_set"]) if table is masks else "")


def mask_identity(row: MaskRow, uuid: str) -> str:
    """`identity` of a mask with this row, whose label set has this uuid ("" where that was dropped)."""
    return _described(to_columns(masks, row), uuid)


def _described(row: Mapping[Any, Any], uuid: str) -> str:
    # a plan may grow, and a mask with it
    return json_text([uuid, *(str(row[key]) for key in sorted(row) if key != "num_crops")])


def _uuid(conn: Connection, label_set: str) -> str:
    found = conn.execute(select(label_sets.c.uuid).where(label_sets.c.name == label_set)).scalar()
    return str(found or "")
