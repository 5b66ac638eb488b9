"""Format 2: 1,024 images in one row, their facts as packed columns. A copy of how they were packed first."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BLOCK_ROWS = 1024
NUMBERS = {"class_id": "<i4", "size": "<i8", "mtime_ns": "<i8", "width": "<i4", "height": "<i4"}
OLD = ("image", "key", "class_id", "width", "height", "digest", "size", "mtime_ns", "bad")


def upgrade() -> None:
    """Move every image into the row of its block."""
    blocks = op.create_table(
        "image_blocks",
        sa.Column("block", sa.Integer(), nullable=False, primary_key=True, autoincrement=False),
        sa.Column("num_rows", sa.Integer(), nullable=False),
        sa.Column("num_images", sa.Integer(), nullable=False),
        sa.Column("checksum", sa.BigInteger(), nullable=False),
        sa.Column("key_crc", sa.LargeBinary(), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("class_id", sa.LargeBinary(), nullable=False),
        sa.Column("size", sa.LargeBinary(), nullable=False),
        sa.Column("mtime_ns", sa.LargeBinary(), nullable=False),
        sa.Column("width", sa.LargeBinary()),
        sa.Column("height", sa.LargeBinary()),
        sa.Column("digest", sa.LargeBinary()),
        sa.Column("bad", sa.Text()),
    )
    conn = op.get_bind()
    query = sa.text(
        f"SELECT {', '.join(OLD)} FROM images WHERE image >= :first AND image < :end ORDER BY image"
    )
    last = conn.execute(sa.text("SELECT max(image) FROM images")).scalar()
    for first in range(0, 0 if last is None else last + 1, BLOCK_ROWS):
        rows = conn.execute(query, {"first": first, "end": first + BLOCK_ROWS}).all()
        if rows:
            conn.execute(sa.insert(blocks), _packed(first, rows))
    op.drop_index("images_key", "images")
    op.drop_table("images")


def _packed(first: int, rows: Sequence[Any]) -> dict[str, Any]:
    at = [row.image - first for row in rows]
    num_rows = at[-1] + 1
    keys = [""] * num_rows
    for offset, row in zip(at, rows, strict=True):
        keys[offset] = row.key
    columns = {name: np.full(num_rows, -1, kind) for name, kind in NUMBERS.items()}
    for name, column in columns.items():
        column[at] = [-1 if (value := getattr(row, name)) is None else value for row in rows]
    digests = np.zeros((num_rows, 16), np.uint8)
    for offset, row in zip(at, rows, strict=True):
        if row.digest is not None:
            digests[offset] = np.frombuffer(row.digest, np.uint8)
    values: dict[str, Any] = {name: _planes(column) for name, column in columns.items()}
    values["digest"] = digests.tobytes()
    if all(row.digest is None for row in rows):
        values |= dict.fromkeys(("width", "height", "digest"))
    bad = {str(o): row.bad for o, row in zip(at, rows, strict=True) if row.bad is not None}
    number = first // BLOCK_ROWS
    return {
        **values,
        "block": number,
        "num_rows": num_rows,
        "num_images": len(rows),
        "checksum": zlib.crc32(f"{number} {num_rows} {len(rows)}".encode()),
        "key_crc": np.array([zlib.crc32(key.encode()) for key in keys], "<u4").tobytes(),
        "key": zlib.compress("\n".join(keys).encode(), 9),
        "bad": json.dumps(bad, sort_keys=True, separators=(",", ":")) if bad else None,
    }


def _planes(column: Any) -> bytes:  # noqa: ANN401 - a NumPy array
    return zlib.compress(column.view(np.uint8).reshape(len(column), -1).T.tobytes(), 9)
