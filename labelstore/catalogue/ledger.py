"""The ledger: a crop is committed if and only if its shard's row is here, and the row names bytes on disk.

`commit` is step 4 of the write protocol: in one transaction the leases are checked, the files get
their final names and the rows are written. The renames come inside, so that an owner who slept past
the lease renames nothing; the rows come after, so that a kill in between leaves files that no row
names, which the next owner may replace. Small blocks share a transaction, since one costs as much as
computing several of them; each is checked for itself.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from sqlalchemy import Connection, select

from labelstore.catalogue import leases
from labelstore.catalogue.digests import (
    Row,
    check_num_rows,
    delete_rows,
    insert_rows,
    update_rows,
    verified_rows,
)
from labelstore.catalogue.named_rows import json_text
from labelstore.catalogue.records import Lease, ShardRow
from labelstore.catalogue.tables import label_sets, plans, shards
from labelstore.errors import ConflictError, DamagedShard, LeaseLost, UsageError
from labelstore.shard_files import ShardFile, check_file_key

MAX_FILES_BYTES = 16 << 20
"""JSON of one row's files: far more than any shard has, and a cap on what a wicked row inflates to."""
MAX_CHUNKS = 1 << 16
"""Of one array in one shard; ours have some twenty. Every reader of the ledger looks at each."""


def pack_files(files: Sequence[ShardFile]) -> bytes:
    """Files of a shard as zlib-compressed JSON: [[key, size, sha256, {array path: [crc32c or null, ...]}], ...]."""
    plain = [
        [
            file.key,
            int(file.size),
            file.sha256,
            {path: _ints(crcs) for path, crcs in file.chunks.items()},
        ]
        for file in files
    ]
    return zlib.compress(json_text(plain).encode(), 9)


def unpack_files(packed: bytes) -> tuple[ShardFile, ...]:
    """Inverse of `pack_files`; DamagedShard for bytes that it did not write."""
    try:
        inflate = zlib.decompressobj()
        text = inflate.decompress(packed, MAX_FILES_BYTES)
        if not inflate.eof:
            raise ValueError(f"more than {MAX_FILES_BYTES} bytes")
        plain = json.loads(text)
        if not isinstance(plain, list):
            raise TypeError("no list of files")
        return tuple(
            ShardFile(
                key=check_file_key(key),
                size=int(size),
                sha256=str(sha256),
                chunks={str(path): tuple(_ints(crcs)) for path, crcs in chunks.items()},
            )
            for key, size, sha256, chunks in plain
        )
    except (zlib.error, ValueError, TypeError, AttributeError, RecursionError):
        raise DamagedShard(
            "catalogue table shards: a row's files are damaged: restore the catalogue from a copy"
        ) from None


def commit(
    conn: Connection,
    blocks: Sequence[tuple[Lease, Sequence[ShardRow]]],
    publish: Callable[[Sequence[int]], None],
    *,
    now: float,
) -> list[LeaseLost | ConflictError | None]:
    """Check every lease, call `publish`, write the rows: all in the caller's transaction.

    One entry per block comes back: None where it was committed, otherwise why not. A block that is refused
    takes no other with it: `publish` is called once, with the numbers of those whose lease is ours and whose
    shards do not exist yet; where it raises, the caller's transaction takes everything back.

    Rows belong to the lease's block, and to its group or to a group "crops/..."; the fencing number
    and the time of the commit are filled in. A row of a crops group that is committed already with
    the same digests is dropped, since label sets of one plan share their crops; any other row that
    exists is a ConflictError.
    """
    outcomes: list[LeaseLost | ConflictError | None] = []
    admitted: dict[int, list[ShardRow]] = {}
    for number, (lease, rows) in enumerate(blocks):
        try:
            admitted[number] = _admitted(conn, lease, rows, now=now)
            outcomes.append(None)
        except (LeaseLost, ConflictError) as refused:
            outcomes.append(refused)
    publish(list(admitted))
    insert_rows(
        conn,
        shards,
        [
            to_columns(replace(row, fence=blocks[number][0].fence, committed=now))
            for number, rows in admitted.items()
            for row in rows
        ],
    )
    return outcomes


def _admitted(
    conn: Connection, lease: Lease, rows: Sequence[ShardRow], *, now: float
) -> list[ShardRow]:
    """The rows of one block that are to be written; LeaseLost or ConflictError where it may not be.

    LeaseLost also where the label set or mask was dropped since the lease was granted, or made anew.
    """
    for row in rows:
        if row.block != lease.block or not (
            row.group == lease.group or row.group.startswith("crops/")
        ):
            raise UsageError(
                f"shard {row.crop_shard} of block {row.block} of {row.group} is not covered by the lease "
                f"on block {lease.block} of {lease.group}"
            )
    leases.check(conn, lease, now=now)
    return [row for row in rows if not _is_committed(conn, row)]


def replace_shard(
    conn: Connection, lease: Lease, row: ShardRow, publish: Callable[[], None], *, now: float
) -> None:
    """Put repaired bytes in the place of a committed shard that no longer matches its row."""
    leases.check(conn, lease, now=now)
    publish()
    update_rows(conn, shards, [to_columns(replace(row, fence=lease.fence, committed=now))])


def to_columns(row: ShardRow) -> dict[str, object]:
    """Column values of a ledger row."""
    return {
        "group_name": row.group,
        "block": row.block,
        "crop_shard": row.crop_shard,
        "num_images": row.num_images,
        "bytes": sum(file.size for file in row.files),
        "fence": row.fence,
        "seconds": row.seconds,
        "device": row.device,
        "committed": row.committed,
        "files": pack_files(row.files),
    }


def from_columns(row: Row) -> ShardRow:
    """The ledger row of a table row in column order."""
    group, block, crop_shard, num_images, _, fence, seconds, device, committed, files = row
    return ShardRow(
        group=group,
        block=block,
        crop_shard=crop_shard,
        files=unpack_files(files),
        num_images=num_images,
        fence=fence,
        seconds=seconds,
        device=device,
        committed=committed,
    )


def group_shards(conn: Connection, group: str) -> list[ShardRow]:
    """A group's committed shards by (block, crop shard), checked against their digest."""
    return [from_columns(row) for row in verified_rows(conn, shards, group)]


def labelling(conn: Connection, group: str) -> list[tuple[float, str]]:
    """Per committed shard of a group the seconds and the device it took; the lists of files stay packed."""
    return [(row[6], row[7]) for row in verified_rows(conn, shards, group)]


def find_shard(conn: Connection, group: str, block: int, crop_shard: int) -> ShardRow | None:
    """One committed shard, or None. Reads the group's rows to be sure that a missing row was never there."""
    for row in verified_rows(conn, shards, group):
        if row[1] == block and row[2] == crop_shard:
            return from_columns(row)
    return None


def committed_shards(conn: Connection, group: str) -> dict[int, tuple[int, ...]]:
    """Per block the crop shards that are committed; DamagedShard unless there are as many as were written.

    Workers ask for this with every block that they commit: lists of files stay unread, so that a row which changed
    by itself is left to `group_shards`, which everything that reads shards begins with, and to `verify_tables`.
    """
    keys = select(shards.c.block, shards.c.crop_shard).where(shards.c.group_name == group)
    found: dict[int, list[int]] = {}
    count = 0
    for block, crop_shard in conn.execute(keys.order_by(shards.c.block, shards.c.crop_shard)):
        found.setdefault(block, []).append(crop_shard)
        count += 1
    check_num_rows(conn, shards, group, count)
    return {block: tuple(crop_shards) for block, crop_shards in found.items()}


def labelled_elsewhere(conn: Connection, group: str, image: int) -> str | None:
    """Another label set that has committed shards of the image's block: its name, or None."""
    others = select(label_sets.c.name, plans.c.images_per_shard).join(
        plans, plans.c.name == label_sets.c.plan
    )
    for name, images_per_shard in conn.execute(others).all():
        other = f"labels/{name}"
        there = select(shards.c.block).where(
            shards.c.group_name == other, shards.c.block == image // images_per_shard
        )
        if other != group and conn.execute(there.limit(1)).first() is not None:
            return str(name)
    return None


def forget_group(conn: Connection, group: str) -> None:
    """Delete a group's rows; its files are then named by nobody."""
    delete_rows(conn, shards, shards.c.group_name == group)


def group_totals(conn: Connection) -> dict[str, tuple[int, int]]:
    """Per group (shards, bytes on disk)."""
    totals: dict[str, tuple[int, int]] = {}
    for group, _, _, _, size, *_ in verified_rows(conn, shards):
        count, total = totals.get(group, (0, 0))
        totals[group] = (count + 1, total + size)
    return totals


def _is_committed(conn: Connection, row: ShardRow) -> bool:
    there = conn.execute(
        select(shards.c.files, shards.c.fence).where(
            shards.c.group_name == row.group,
            shards.c.block == row.block,
            shards.c.crop_shard == row.crop_shard,
        )
    ).one_or_none()
    if there is None:
        return False
    what = f"shard {row.crop_shard} of block {row.block} of {row.group}"
    if not row.group.startswith("crops/"):
        raise ConflictError(
            f"{what} is committed already (fence {there[1]}): a committed shard is never replaced"
        )
    if _identity(unpack_files(there[0])) != _identity(row.files):
        raise ConflictError(
            f"{what} is committed with other crops: a plan's crops follow from its parameters and the images; "
            "use the folder that the store was made from"
        )
    return True


def _identity(files: Sequence[ShardFile]) -> list[tuple[str, int, str]]:
    return sorted((file.key, file.size, file.sha256) for file in files)


def _ints(crcs: Sequence[int | None]) -> list[int | None]:
    if len(crcs) > MAX_CHUNKS:
        raise ValueError(f"more than {MAX_CHUNKS} chunks")
    return [None if crc is None else int(crc) for crc in crcs]
