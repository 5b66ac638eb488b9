"""Leases: who may write an image block, until when, and the fencing number that outlives them.

A lease is granted on a block that is neither complete nor leased. Its fencing number is one
more than any that the block ever had, and is kept after release, so that an owner who slept past
the expiry can be told apart from the one who came after, whatever both believe. A lease is of one label set
or mask and not of its name: after a drop it is worth nothing, also where the name was given again.

No lease lasts longer than `LONGEST_SECONDS`. An expiry further ahead was written by a clock that was wrong, or has
been set back since: such a lease is void, so that no worker waits for it, and its fencing number keeps its owner apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Table, func, select, tuple_

from labelstore.catalogue.connection import Database
from labelstore.catalogue.digests import insert_rows, update_rows, verified_rows
from labelstore.catalogue.record_columns import check_types, json_text, to_columns
from labelstore.catalogue.records import Lease, MaskRow
from labelstore.catalogue.schema import label_sets, leases, masks, plans, shards
from labelstore.errors import ConflictError, LeaseLost, UsageError

LONGEST_SECONDS = 600.0
"""Five times the leases that `LeaseKeeper` takes, for clocks of machines that differ by minutes."""
_HELD = (leases.c.group_name, leases.c.block, leases.c.owner, leases.c.fence, leases.c.expires)
FIRST_LOOK, MOST_LOOK = 64, 4096
"""Blocks that are looked at together for one that is not complete: few at first, more where all of them are."""


class Leases:
    """Who holds which image block. Every method is one transaction by the catalogue's clock."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def acquire(
        self, group: str, blocks: int | Sequence[int], owner: str, ttl_s: float, done: int = 1
    ) -> Lease | None:
        """Lease the first block with fewer than `done` committed shards and no live lease; None if there is none.

        `blocks` are block numbers in the order to be tried, or how many there are. `done` is how
        many crop shards make a block complete. `owner` must be unique to the worker: its own live
        leases are not granted twice.
        """
        granted = self.acquire_blocks(group, blocks, owner, ttl_s, done, count=1)
        return granted[0] if granted else None

    def acquire_blocks(
        self,
        group: str,
        blocks: int | Sequence[int],
        owner: str,
        ttl_s: float,
        done: int = 1,
        *,
        count: int,
        of: str | None = None,
        complete: set[int] | None = None,
    ) -> list[Lease]:
        """Lease up to `count` blocks in one transaction, as `acquire` does one.

        Blocks in `complete` are passed over, and those that are found to be so are added to it: while all others wait,
        a large group is not read again for every block. ConflictError where `of` is given and is not the group's
        `identity`: it was dropped meanwhile, or created again.
        """
        _check_seconds(ttl_s)
        if done < 1:
            raise UsageError(f"done={done}: a complete block has at least one shard")
        passed = set[int]() if complete is None else complete
        order = range(blocks) if isinstance(blocks, int) else blocks

        def work(conn: Connection) -> list[Lease]:
            now = self._database.now(conn)
            now_is = identity(conn, group) if of is None else _same_identity(conn, group, of)
            live = {held.block for held in _held(conn, group) if is_live(held.expires, now=now)}
            free = [int(block) for block in order if block not in passed and block not in live]
            wanted: list[int] = []
            at, size = 0, FIRST_LOOK
            while len(wanted) < count and at < len(free):
                part = free[at : at + size]
                committed = _num_committed(conn, group, part)
                passed.update(block for block in part if committed.get(block, 0) >= done)
                wanted += [block for block in part if block not in passed]
                at, size = at + size, min(4 * size, MOST_LOOK)
            del wanted[count:]
            fences = _fences(conn, group, wanted)
            granted = [
                Lease(
                    group=group,
                    block=block,
                    owner=owner,
                    expires=now + ttl_s,
                    fence=fences.get(block, 0) + 1,
                    identity=now_is,
                )
                for block in wanted
            ]
            insert_rows(conn, leases, [_row(one) for one in granted if one.block not in fences])
            update_rows(conn, leases, [_row(one) for one in granted if one.block in fences])
            return granted

        return self._database.write(work)

    def check(self, lease: Lease) -> None:
        """LeaseLost unless the lease is still its owner's, has not expired, and its group is there."""
        with self._database.reading() as conn:
            check_lease(conn, lease, now=self._database.now(conn))

    def check_identity(self, group: str, of: str) -> None:
        """ConflictError where `of` is not the group's `identity`: it was dropped, or another got its name."""
        with self._database.reading() as conn:
            _same_identity(conn, group, of)

    def renew(self, lease: Lease, ttl_s: float) -> Lease:
        """The same lease until `ttl_s` seconds from now; LeaseLost if it expired or was taken over."""
        (renewed,) = self.renew_blocks([lease], ttl_s)
        if isinstance(renewed, LeaseLost):
            raise renewed
        return renewed

    def renew_blocks(self, held: Sequence[Lease], ttl_s: float) -> list[Lease | LeaseLost]:
        """The same leases until `ttl_s` seconds from now; a LeaseLost instead of each that is not ours any
        more."""
        _check_seconds(ttl_s)

        def work(conn: Connection) -> list[Lease | LeaseLost]:
            now = self._database.now(conn)
            renewed = [
                lost or replace(lease, expires=now + ttl_s)
                for lease, lost in zip(held, lost_leases(conn, held, now=now), strict=True)
            ]
            update_rows(
                conn,
                leases,
                [
                    {"group_name": lease.group, "block": lease.block, "expires": lease.expires}
                    for lease in renewed
                    if isinstance(lease, Lease)
                ],
            )
            return renewed

        return self._database.write(work)

    def release(self, *held: Lease) -> None:
        """Give blocks up; does nothing about one that was lost meanwhile."""

        def work(conn: Connection) -> None:
            now = self._database.now(conn)
            # also of a group that is gone: its next creator need not wait for the lease to expire
            found = _given_up(conn, held, now=now)
            update_rows(
                conn,
                leases,
                [
                    {"group_name": lease.group, "block": lease.block, "owner": "", "expires": 0.0}
                    for lease, lost in zip(held, found, strict=True)
                    if lost is None
                ],
            )

        self._database.write(work)

    def live(self, group: str | None = None) -> list[Lease]:
        """Leases of a group, or of all, that have not expired, by block: to look at, and to release."""
        with self._database.reading() as conn:
            return live_leases(conn, group, now=self._database.now(conn))

    def held(self, group: str) -> list[Lease]:
        """`live` for workers that ask all the time: rows of blocks that nobody has stay unread, so that one which
        changed by itself is left to `live` and `verify_tables`."""
        with self._database.reading() as conn:
            now = self._database.now(conn)
            return [lease for lease in _held(conn, group) if is_live(lease.expires, now=now)]

    def now(self) -> float:
        """Unix seconds by the clock that leases expire by."""
        with self._database.reading() as conn:
            return self._database.now(conn)

    def owned(self) -> list[Lease]:
        """Every lease that was not given up, also those that expired or are void."""
        with self._database.reading() as conn:
            return [lease for lease in _leases(conn, None) if lease.owner]


def check_lease(conn: Connection, lease: Lease, *, now: float) -> None:
    """The LeaseLost of `lost_leases`, raised."""
    (lost,) = lost_leases(conn, [lease], now=now)
    if lost is not None:
        raise lost


def lost_leases(conn: Connection, held: Sequence[Lease], *, now: float) -> list[LeaseLost | None]:
    """None for each lease that is its owner's, with its fencing number, has not expired, and whose group is there.

    The group must be the one that it was granted for, not another that got its name.
    """
    now_are = {group: identity(conn, group) for group in {lease.group for lease in held}}
    return [
        lost
        if lost is not None or now_are[lease.group] == lease.identity
        else LeaseLost(
            f"{lease.group} was {'created again' if now_are[lease.group] else 'dropped'} after block {lease.block} of "
            "it was leased: nothing was committed"
        )
        for lease, lost in zip(held, _given_up(conn, held, now=now), strict=True)
    ]


def live_leases(conn: Connection, group: str | None, *, now: float) -> list[Lease]:
    """`Leases.live` as the transaction of `conn` sees it."""
    return [lease for lease in _leases(conn, group) if is_live(lease.expires, now=now)]


def is_live(expires: float, *, now: float) -> bool:
    """Whether a lease with this expiry keeps others away."""
    return now < expires <= now + LONGEST_SECONDS


def _leases(conn: Connection, group: str | None) -> list[Lease]:
    return _records(verified_rows(conn, leases, group))


def _held(conn: Connection, group: str) -> list[Lease]:
    """Leases of a group that were not given up, by block: as many as there are workers."""
    query = select(leases).where(leases.c.group_name == group, leases.c.owner != "")
    return _records([tuple(row) for row in conn.execute(query.order_by(leases.c.block))])


def _records(rows: Sequence[tuple[Any, ...]]) -> list[Lease]:
    for row in rows:
        check_types(leases, row)
    return [
        Lease(group=row[0], block=row[1], owner=row[2], expires=row[3], fence=row[4])
        for row in rows
    ]


def _same_identity(conn: Connection, group: str, of: str) -> str:
    now_is = identity(conn, group)
    if now_is != of:
        raise ConflictError(
            f"{group} was {'created again' if now_is else 'dropped'} while this process was at work on it: "
            "what it made since is not committed; run the command again if it is still wanted"
        )
    return now_is


def _check_seconds(ttl_s: float) -> None:
    if not 0 < ttl_s <= LONGEST_SECONDS:
        raise UsageError(f"a lease of {ttl_s} s: give more than 0 and at most {LONGEST_SECONDS:g}")


def _num_committed(conn: Connection, group: str, blocks: Sequence[int]) -> dict[int, int]:
    """Per block, of these, how many crop shards are committed."""
    per_block = (
        select(shards.c.block, func.count())
        .where(shards.c.group_name == group, shards.c.block.in_(blocks))
        .group_by(shards.c.block)
    )
    return {int(block): int(count) for block, count in conn.execute(per_block)}


def _fences(conn: Connection, group: str, blocks: Sequence[int]) -> dict[int, int]:
    """The fencing numbers of those of these blocks that were ever leased."""
    fences: dict[int, int] = {}
    for start in range(0, len(blocks), MOST_LOOK):
        part = leases.c.block.in_(blocks[start : start + MOST_LOOK])
        query = select(leases.c.block, leases.c.fence).where(leases.c.group_name == group, part)
        fences |= {int(block): int(fence) for block, fence in conn.execute(query)}
    return fences


def _row(lease: Lease) -> dict[str, object]:
    return {
        "group_name": lease.group,
        "block": lease.block,
        "owner": lease.owner,
        "expires": lease.expires,
        "fence": lease.fence,
    }


def _given_up(conn: Connection, held: Sequence[Lease], *, now: float) -> list[LeaseLost | None]:
    """Per lease why it is its owner's no more, whatever became of its group."""
    found: dict[tuple[str, int], tuple[str, int, float]] = {}
    for start in range(0, len(held), MOST_LOOK):
        keys = [(lease.group, lease.block) for lease in held[start : start + MOST_LOOK]]
        query = select(*_HELD).where(tuple_(*_HELD[:2]).in_(keys))
        found |= {(row[0], row[1]): (row[2], row[3], row[4]) for row in conn.execute(query)}
    return [_lost(lease, found.get((lease.group, lease.block)), now=now) for lease in held]


def _lost(lease: Lease, found: tuple[str, int, float] | None, *, now: float) -> LeaseLost | None:
    what = f"lease on block {lease.block} of {lease.group}"
    if found is None:
        return LeaseLost(f"{what} was never granted: acquire one first; nothing was committed")
    owner, fence, expires = found
    if owner != lease.owner or fence != lease.fence:
        by = f"taken over by {owner}" if owner and fence != lease.fence else "given up"
        return LeaseLost(
            f"{what} (fence {lease.fence}) was {by}: acquire another block; nothing was committed"
        )
    if expires <= now:
        return LeaseLost(
            f"{what} expired {now - expires:.1f} s ago: acquire it again; nothing was committed"
        )
    return None


def named(group: str) -> tuple[Table, str]:
    """The table that keeps a group's name, and the name."""
    kind, _, name = group.partition("/")
    return {"labels": label_sets, "masks": masks, "crops": plans}[kind], name


def identity(conn: Connection, group: str) -> str:
    """Return the uuid that tells a label set, mask or plan from another of its name; "" where none is registered."""
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
    uuid = conn.execute(select(label_sets.c.uuid).where(label_sets.c.name == label_set)).scalar()
    return str(uuid or "")
