"""What the arrays' metadata follows from, as one state of the catalogue: plans, label sets, masks, image rows.

Read in one transaction, with a text that tells any other state from it: so that metadata is never written for
rows that were read at different moments, or that have changed meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection

from labelstore.catalogue.digests import digest_text
from labelstore.catalogue.image_columns import counts
from labelstore.catalogue.named_rows import all_records
from labelstore.catalogue.records import LabelSetRow, MaskRow, PlanRow
from labelstore.catalogue.tables import label_sets, masks, plans


@dataclass(frozen=True, kw_only=True)
class ArrayRows:
    """Plans, label sets and masks by name, and how many image rows there are."""

    num_rows: int
    plans: Mapping[str, PlanRow]
    label_sets: Mapping[str, LabelSetRow]
    masks: Mapping[str, MaskRow]
    state: str
    """Another text after any change of these."""


def read_array_rows(conn: Connection) -> ArrayRows:
    """The rows as the transaction of `conn` sees them; DamagedShard unless they match their digests."""
    rows = counts(conn)[1]
    return ArrayRows(
        num_rows=rows,
        plans={row.name: row for row in all_records(conn, plans, PlanRow)},
        label_sets={row.name: row for row in all_records(conn, label_sets, LabelSetRow)},
        masks={row.name: row for row in all_records(conn, masks, MaskRow)},
        state=_state(conn, rows),
    )


def array_rows_state(conn: Connection) -> str:
    """`ArrayRows.state` alone. Facts of images are left out: workers record them with every commit."""
    return _state(conn, counts(conn)[1])


def _state(conn: Connection, rows: int) -> str:
    return " ".join([str(rows), *(digest_text(conn, t) for t in (plans, label_sets, masks))])
