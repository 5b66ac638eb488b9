"""The tables of format 1, as `labelstore create` makes them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make every table."""
    op.create_table(
        "classes",
        sa.Column("class_id", sa.Integer(), nullable=False, primary_key=True, autoincrement=False),
        sa.Column("name", sa.Text(), nullable=False, unique=True),
    )
    op.create_table(
        "digests",
        sa.Column("table_name", sa.Text(), nullable=False, primary_key=True),
        sa.Column("scope", sa.Text(), nullable=False, primary_key=True),
        sa.Column("num_rows", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "images",
        sa.Column("image", sa.Integer(), nullable=False, primary_key=True, autoincrement=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("class_id", sa.Integer(), nullable=False),
        sa.Column("width", sa.Integer()),
        sa.Column("height", sa.Integer()),
        sa.Column("digest", sa.LargeBinary()),
        sa.Column("size", sa.BigInteger()),
        sa.Column("mtime_ns", sa.BigInteger()),
        sa.Column("bad", sa.Text()),
    )
    op.create_index("images_key", "images", ["key"], unique=True)
    op.create_table(
        "label_sets",
        sa.Column("name", sa.Text(), nullable=False, primary_key=True),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("teacher", sa.Text(), nullable=False),
        sa.Column("num_classes", sa.Integer(), nullable=False),
        sa.Column("codec", sa.Text(), nullable=False),
        sa.Column("uuid", sa.Text(), nullable=False),
        sa.Column("temperature", sa.Double(), nullable=False),
        sa.Column("facts", sa.Text(), nullable=False),
    )
    op.create_table(
        "leases",
        sa.Column("group_name", sa.Text(), nullable=False, primary_key=True),
        sa.Column("block", sa.Integer(), nullable=False, primary_key=True, autoincrement=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "masks",
        sa.Column("name", sa.Text(), nullable=False, primary_key=True),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("teacher", sa.Text(), nullable=False),
        sa.Column("label_set", sa.Text(), nullable=False),
        sa.Column("num_crops", sa.Integer(), nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
    )
    op.create_table(
        "metadata_files",
        sa.Column("key", sa.Text(), nullable=False, primary_key=True),
        sa.Column("digest", sa.Text(), nullable=False),
    )
    op.create_table(
        "metadata_intents",
        sa.Column("token", sa.Integer(), nullable=False, primary_key=True, autoincrement=False),
        sa.Column("key", sa.Text(), nullable=False, primary_key=True),
        sa.Column("old_digest", sa.Text(), nullable=False),
        sa.Column("new_digest", sa.Text(), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "plans",
        sa.Column("name", sa.Text(), nullable=False, primary_key=True),
        sa.Column("num_crops", sa.Integer(), nullable=False),
        sa.Column("images_per_shard", sa.Integer(), nullable=False),
        sa.Column("crops_per_shard", sa.Integer(), nullable=False),
        sa.Column("crops_per_chunk", sa.Integer(), nullable=False),
        sa.Column("stored", sa.Boolean(), nullable=False),
        sa.Column("parameters", sa.Text(), nullable=False),
    )
    op.create_table(
        "results",
        sa.Column("run", sa.Text(), nullable=False, primary_key=True),
        sa.Column("name", sa.Text(), nullable=False, primary_key=True),
        sa.Column("epoch", sa.Integer(), nullable=False, primary_key=True, autoincrement=False),
        sa.Column("value", sa.Double(), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "runs",
        sa.Column("name", sa.Text(), nullable=False, primary_key=True),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("label_sets", sa.Text(), nullable=False),
        sa.Column("masks", sa.Text(), nullable=False),
        sa.Column("config", sa.Text(), nullable=False),
        sa.Column("started", sa.Double(), nullable=False),
    )
    op.create_table(
        "shards",
        sa.Column("group_name", sa.Text(), nullable=False, primary_key=True),
        sa.Column("block", sa.Integer(), nullable=False, primary_key=True, autoincrement=False),
        sa.Column(
            "crop_shard", sa.Integer(), nullable=False, primary_key=True, autoincrement=False
        ),
        sa.Column("num_images", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("committed", sa.Double(), nullable=False),
        sa.Column("files", sa.LargeBinary(), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "store",
        sa.Column("uuid", sa.Text(), nullable=False, primary_key=True),
        sa.Column("format_version", sa.Integer(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
    )
    op.create_table(
        "teachers",
        sa.Column("name", sa.Text(), nullable=False, primary_key=True),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("architecture", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("num_classes", sa.Integer(), nullable=False),
        sa.Column("input_size", sa.Integer(), nullable=False),
        sa.Column("mean", sa.Text(), nullable=False),
        sa.Column("std", sa.Text(), nullable=False),
        sa.Column("interpolation", sa.Text(), nullable=False),
        sa.Column("crop_pct", sa.Double(), nullable=False),
        sa.Column("top1", sa.Double()),
        sa.Column("versions", sa.Text(), nullable=False),
        sa.Column("facts", sa.Text(), nullable=False),
    )
