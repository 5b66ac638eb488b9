"""Leases: who may write an image block, until when, and the fencing number that outlives them.

A lease is granted on a block that is not complete and that nobody holds. Its fencing number is one
more than any that the block ever had, and is kept after release, so that an owner who slept past
the expiry can be told apart from the one who came after, whatever both believe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection, func, select

from labelstore.catalogue.digests import insert_rows, update_rows, verified_rows
from labelstore.catalogue.records import Lease
from labelstore.catalogue.tables import leases, shards
from labelstore.errors import LeaseLost, UsageError


def acquire(
    conn: Connection,
    group: str,
    blocks: Sequence[int],
    *,
    owner: str,
    ttl_s: float,
    done: int,
    now: float,
    count: int = 1,
) -> list[Lease]:
    """Lease the first `count` of `blocks` that have fewer than `done` committed shards and no live lease."""
    if ttl_s <= 0:
        raise UsageError(
            f"a lease of {ttl_s} s is over before it begins: give a positive number of seconds"
        )
    if done < 1:
        raise UsageError(f"done={done}: a complete block has at least one shard")
    per_block = (
        select(shards.c.block, func.count())
        .where(shards.c.group_name == group)
        .group_by(shards.c.block)
    )
    committed = {int(block): int(count) for block, count in conn.execute(per_block)}
    held = {row[1]: row for row in verified_rows(conn, leases, group)}
    new: list[dict[str, object]] = []
    renewed: list[dict[str, object]] = []
    granted: list[Lease] = []
    for block in blocks:
        if len(granted) == count:
            break
        if committed.get(block, 0) >= done:
            continue
        row = held.get(block)
        if row is not None and row[3] > now:
            continue
        fence = 1 if row is None else int(row[4]) + 1
        lease = Lease(group=group, block=int(block), owner=owner, expires=now + ttl_s, fence=fence)
        values = {
            "group_name": group,
            "block": block,
            "owner": owner,
            "expires": lease.expires,
            "fence": fence,
        }
        (new if row is None else renewed).append(values)
        granted.append(lease)
    insert_rows(conn, leases, new)
    update_rows(conn, leases, renewed)
    return granted


def check(conn: Connection, lease: Lease, *, now: float) -> None:
    """LeaseLost unless the lease is still its owner's, with its fencing number, and has not expired."""
    found = conn.execute(
        select(leases.c.owner, leases.c.fence, leases.c.expires).where(
            leases.c.group_name == lease.group, leases.c.block == lease.block
        )
    ).one_or_none()
    what = f"lease on block {lease.block} of {lease.group}"
    if found is None:
        raise LeaseLost(f"{what} was never granted: acquire one first; nothing was committed")
    owner, fence, expires = found
    if owner != lease.owner or fence != lease.fence:
        by = f"taken over by {owner}" if owner and fence != lease.fence else "given up"
        raise LeaseLost(
            f"{what} (fence {lease.fence}) was {by}: acquire another block; nothing was committed"
        )
    if expires <= now:
        raise LeaseLost(
            f"{what} expired {now - expires:.1f} s ago: acquire it again; nothing was committed"
        )


def renew(
    conn: Connection, held: Sequence[Lease], *, ttl_s: float, now: float
) -> list[Lease | LeaseLost]:
    """The same leases with `ttl_s` seconds from now; a LeaseLost in the place of each that is not ours any more."""
    if ttl_s <= 0:
        raise UsageError(
            f"a lease of {ttl_s} s is over before it begins: give a positive number of seconds"
        )
    found = [_checked(conn, lease, now=now) for lease in held]
    renewed = [
        replace(lease, expires=now + ttl_s) if isinstance(lease, Lease) else lease
        for lease in found
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


def release(conn: Connection, held: Sequence[Lease], *, now: float) -> None:
    """Give the blocks up; does nothing about a lease that was lost meanwhile."""
    found = [_checked(conn, lease, now=now) for lease in held]
    update_rows(
        conn,
        leases,
        [
            {"group_name": lease.group, "block": lease.block, "owner": "", "expires": 0.0}
            for lease in found
            if isinstance(lease, Lease)
        ],
    )


def _checked(conn: Connection, lease: Lease, *, now: float) -> Lease | LeaseLost:
    try:
        check(conn, lease, now=now)
    except LeaseLost as lost:
        return lost
    return lease


def live(conn: Connection, group: str | None, *, now: float) -> list[Lease]:
    """Leases of a group (None: of all) that have not expired, by block."""
    return [
        Lease(group=row[0], block=row[1], owner=row[2], expires=row[3], fence=row[4])
        for row in verified_rows(conn, leases, group)
        if row[3] > now
    ]
