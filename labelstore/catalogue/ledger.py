"""The ledger: a crop is committed if and only if its shard's row is here, and the row names bytes on disk.

A commit is step 4 of the write protocol: in one transaction the leases are checked, the files get
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
from typing import TypeAlias

from sqlalchemy import Connection, select, tuple_

from labelstore.arrays.shard_files import ShardFile, check_file_key
from labelstore.catalogue.block_leases import (
    MOST_LOOK,
    identity,
    live_leases,
    lost_leases,
    named,
)
from labelstore.catalogue.connection import Database
from labelstore.catalogue.digests import (
    Row,
    check_num_rows,
    delete_rows,
    digest_text,
    insert_rows,
    update_rows,
    verified_rows,
)
from labelstore.catalogue.metadata_files import mark_metadata
from labelstore.catalogue.record_columns import all_records, check_types, json_text
from labelstore.catalogue.records import LabelSetRow, Lease, MaskRow, ShardRow
from labelstore.catalogue.schema import label_sets, masks, plans, shards
from labelstore.errors import ConflictError, DamagedShard, LeaseLost, UsageError
from labelstore.untrusted.refusal import inflated


class Ledger:
    """The committed shards of every group. Every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def commit(
        self,
        lease: Lease,
        rows: Sequence[ShardRow],
        publish: Callable[[], None],
        extra: Callable[[Connection], None] | None = None,
    ) -> None:
        """Make shards exist, in one transaction: check lease and rows, `publish()`, write rows, `extra(conn)`.

        `publish` gives the files their final names and syncs the folders; it is called at most
        once. LeaseLost or ConflictError before it is called mean that no file was renamed. After
        any error nothing is committed, and files that were renamed may be replaced by the next
        holder of the lease.
        """
        (refused,) = self.commit_blocks(
            [(lease, rows)],
            lambda admitted: publish() if admitted else None,
            None if extra is None else lambda conn, numbers: extra(conn) if numbers else None,
        )
        if refused is not None:
            raise refused

    def commit_blocks(
        self,
        blocks: Sequence[tuple[Lease, Sequence[ShardRow]]],
        publish: Callable[[Sequence[int]], None],
        extra: Callable[[Connection, Sequence[int]], None] | None = None,
        *,
        replace_rows: bool = False,
    ) -> list[LeaseLost | ConflictError | None]:
        """`commit` of several blocks in one transaction; per block None, or why it was not committed.

        `publish` gets the numbers of the blocks whose lease is ours and whose shards do not exist yet, once each;
        so does `extra`, after their rows are written, all in one call. A block that is refused holds up no other. After
        any error that is raised nothing is committed.

        Rows belong to the lease's block, and to its group or to a group "crops/..."; the fencing number
        and the time of the commit are filled in. A row of a crops group that is committed already with
        the same digests is dropped, since label sets of one plan share their crops; any other row that
        exists is a ConflictError. `replace_rows`, for `repair` only: all rows exist, and get new bytes since their
        files no longer match them.
        """
        for lease, rows in blocks:
            _check_covered(lease, rows)
        published: set[int] = set()

        def work(conn: Connection) -> list[LeaseLost | ConflictError | None]:
            now = self._database.now(conn)
            outcomes: list[LeaseLost | ConflictError | None] = []
            outcomes += lost_leases(conn, [lease for lease, _ in blocks], now=now)
            there = (
                {}
                if replace_rows
                else _committed_rows(conn, [row for _, rows in blocks for row in rows])
            )
            admitted: dict[int, list[ShardRow]] = {}
            for number, (_, rows) in enumerate(blocks):
                if outcomes[number] is not None:
                    continue
                try:
                    admitted[number] = [row for row in rows if not _is_committed(row, there)]
                except ConflictError as refused:
                    outcomes[number] = refused
            new = [number for number in admitted if number not in published]
            publish(new)
            published.update(new)
            (update_rows if replace_rows else insert_rows)(
                conn,
                shards,
                [
                    shard_columns(replace(row, fence=blocks[number][0].fence, committed=now))
                    for number, rows in admitted.items()
                    for row in rows
                ],
            )
            if extra is not None:
                extra(conn, list(admitted))
            return outcomes

        return self._database.write(work)

    def replace_shard(self, lease: Lease, row: ShardRow, publish: Callable[[], None]) -> None:
        """`repair` only: new bytes for a committed shard whose files no longer match its row."""

        (refused,) = self.commit_blocks(
            [(lease, [row])], lambda admitted: publish() if admitted else None, replace_rows=True
        )
        if refused is not None:
            raise refused

    def shards(self, group: str) -> list[ShardRow]:
        """A group's committed shards by (block, crop shard), checked against their digest."""
        with self._database.reading() as conn:
            return [shard_of(row) for row in verified_rows(conn, shards, group)]

    def digest(self, group: str) -> str:
        """Hexadecimal digest of a group's rows as it is written down: another one after any commit."""
        with self._database.reading() as conn:
            return digest_text(conn, shards, scope=group)

    def labelling(self, group: str) -> list[tuple[float, str]]:
        """Per committed shard of a group the seconds and the device it took; the lists of files stay packed."""
        with self._database.reading() as conn:
            return [(row[6], row[7]) for row in verified_rows(conn, shards, group)]

    def committed(self, group: str) -> dict[int, tuple[int, ...]]:
        """Per block the committed crop shards, without their files; DamagedShard unless as many as were written."""
        with self._database.reading() as conn:
            return committed_shards(conn, group)

    def committed_of(self, group: str, blocks: Sequence[int]) -> dict[int, tuple[int, ...]]:
        """`committed` of a few blocks, without looking at the others, lost ones included."""
        keys = select(shards.c.block, shards.c.crop_shard).where(
            shards.c.group_name == group, shards.c.block.in_(blocks)
        )
        shards_of: dict[int, list[int]] = {}
        with self._database.reading() as conn:
            for block, crop_shard in conn.execute(keys.order_by(shards.c.crop_shard)):
                shards_of.setdefault(block, []).append(crop_shard)
        return {block: tuple(crop_shards) for block, crop_shards in shards_of.items()}

    def counts(self) -> dict[str, tuple[int, int]]:
        """Per group (committed shards, bytes on disk)."""
        totals: dict[str, tuple[int, int]] = {}
        with self._database.reading() as conn:
            for group, _, _, _, size, *_ in verified_rows(conn, shards):
                count, total = totals.get(group, (0, 0))
                totals[group] = (count + 1, total + size)
        return totals


def committed_shards(conn: Connection, group: str) -> dict[int, tuple[int, ...]]:
    """`Ledger.committed` as the transaction of `conn` sees it.

    Workers ask for this with every block that they commit: lists of files stay unread, so that a row which changed
    by itself is left to `Ledger.shards`, which everything that reads shards begins with, and to `verify_tables`.
    """
    keys = select(shards.c.block, shards.c.crop_shard).where(shards.c.group_name == group)
    shards_of: dict[int, list[int]] = {}
    count = 0
    for block, crop_shard in conn.execute(keys.order_by(shards.c.block, shards.c.crop_shard)):
        shards_of.setdefault(block, []).append(crop_shard)
        count += 1
    check_num_rows(conn, shards, group, count)
    return {block: tuple(crop_shards) for block, crop_shards in shards_of.items()}


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


_KEY = (shards.c.group_name, shards.c.block, shards.c.crop_shard)
_Committed: TypeAlias = dict[tuple[str, int, int], tuple[bytes, int]]


def _check_covered(lease: Lease, rows: Sequence[ShardRow]) -> None:
    for row in rows:
        if row.block != lease.block or not (
            row.group == lease.group or row.group.startswith("crops/")
        ):
            raise UsageError(
                f"shard {row.crop_shard} of block {row.block} of {row.group} is not covered by the lease "
                f"on block {lease.block} of {lease.group}"
            )


def _committed_rows(conn: Connection, rows: Sequence[ShardRow]) -> _Committed:
    """(group, block, crop shard) -> files and fencing number of those that are committed already."""
    rows_by_key: _Committed = {}
    for start in range(0, len(rows), MOST_LOOK):
        keys = [(row.group, row.block, row.crop_shard) for row in rows[start : start + MOST_LOOK]]
        query = select(*_KEY, shards.c.files, shards.c.fence).where(tuple_(*_KEY).in_(keys))
        rows_by_key |= {(row[0], row[1], row[2]): (row[3], row[4]) for row in conn.execute(query)}
    return rows_by_key


def _is_committed(row: ShardRow, committed: _Committed) -> bool:
    there = committed.get((row.group, row.block, row.crop_shard))
    if there is None:
        return False
    what = f"shard {row.crop_shard} of block {row.block} of {row.group}"
    if not row.group.startswith("crops/"):
        raise ConflictError(
            f"{what} is committed already (fence {there[1]}): a committed shard is never replaced"
        )
    if _content(unpack_files(there[0])) != _content(row.files):
        raise ConflictError(
            f"{what} is committed with other crops: a plan's crops follow from its parameters and the images; "
            "use the folder that the store was made from"
        )
    return True


def _content(files: Sequence[ShardFile]) -> list[tuple[str, int, str]]:
    return sorted((file.key, file.size, file.sha256) for file in files)


MAX_FILES_BYTES = 16 << 20
"""JSON of one row's files: far more than any shard has, and a cap on what a wicked row inflates to."""
MAX_CHUNKS = 1 << 16
"""Most entries of one array in one shard; ours have some twenty. Every reader of the ledger looks at each."""


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
        plain = json.loads(inflated(packed, MAX_FILES_BYTES))
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
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise DamagedShard(
            "catalogue table shards: a row's files are damaged: restore the catalogue from a copy"
        ) from None


def shard_columns(row: ShardRow) -> dict[str, object]:
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


def shard_of(row: Row) -> ShardRow:
    """The ledger row of a table row in column order."""
    check_types(shards, row)
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


def _ints(crcs: Sequence[int | None]) -> list[int | None]:
    if len(crcs) > MAX_CHUNKS:
        raise ValueError(f"more than {MAX_CHUNKS} chunks")
    return [None if crc is None else int(crc) for crc in crcs]


class Groups:
    """What a group's name stands for, and how it is forgotten."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def identity(self, group: str) -> str:
        """What tells a label set, mask or plan from another that had its name, or gets it; "" where none is
        registered."""
        with self._database.reading() as conn:
            return identity(conn, group)

    def is_registered(self, conn: Connection, group: str) -> bool:
        """Whether a label set, mask or plan of that name is there, or any of its shards."""
        table, name = named(group)
        there = conn.execute(select(table.c.name).where(table.c.name == name)).first()
        return there is not None or bool(committed_shards(conn, group))

    def drop(self, group: str, check: Callable[[Sequence[Lease]], None] | None = None) -> None:
        """Forget a label set, a mask or a plan ("labels/NAME", ...) with its ledger rows, in one transaction.

        `check` is called in it with the group's leases that have not expired: where it raises, all stays. Leases'
        rows stay, since fencing numbers never go back; no row names the group's files then. ConflictError
        for a plan that something is on.
        """
        table, name = named(group)

        def work(conn: Connection) -> None:
            if table is plans:
                _refuse_used(conn, name)
            if check is not None:
                check(live_leases(conn, group, now=self._database.now(conn)))
            delete_rows(conn, shards, shards.c.group_name == group)
            delete_rows(conn, table, table.c.name == name)
            mark_metadata(conn)

        self._database.write(work)


def _refuse_used(conn: Connection, plan: str) -> None:
    used = [row.name for row in all_records(conn, label_sets, LabelSetRow) if row.plan == plan]
    used += [row.name for row in all_records(conn, masks, MaskRow) if row.plan == plan]
    if used:
        raise ConflictError(f"crop plan {plan} is used by {', '.join(used)}: drop these first")
