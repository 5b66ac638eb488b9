"""Leases: who may write an image block, until when, and the fencing number that outlives them.

A lease is granted on a block that is not complete and that nobody holds. Its fencing number is one
more than any that the block ever had, and is kept after release, so that an owner who slept past
the expiry can be told apart from the one who came after, whatever both believe. A lease is of one label set
or mask and not of its name: after a drop it is worth nothing, also where the name was given again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, func, select

from labelstore.catalogue.digests import insert_rows, update_rows, verified_rows
from labelstore.catalogue.named_rows import json_text, to_columns
from labelstore.catalogue.records import Lease, MaskRow
from labelstore.catalogue.tables import label_sets, leases, masks, plans, shards
from labelstore.errors import ConflictError, LeaseLost, UsageError


def identity(conn: Connection, group: str) -> str:
    """What tells a label set, mask or plan from another of its name; "" where none is registered."""
    kind, _, name = group.partition("/")
    if kind == "labels":
        return _uuid(conn, name)
    table = {"masks": masks, "crops": plans}[kind]
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
    of: str | None = None,
) -> list[Lease]:
    """Lease the first `count` of `blocks` that have fewer than `done` committed shards and no live lease.

    ConflictError where the group's `identity` is not `of`, if given.
    """
    if ttl_s <= 0:
        raise UsageError(
            f"a lease of {ttl_s} s is over before it begins: give a positive number of seconds"
        )
    if done < 1:
        raise UsageError(f"done={done}: a complete block has at least one shard")
    now_is = identity(conn, group)
    if of is not None and of != now_is:
        raise ConflictError(
            f"{group} was {'made anew' if now_is else 'dropped'} while this process was at work on it: "
            "what it made since is not committed; run the command again if it is still wanted"
        )
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
        lease = Lease(
            group=group,
            block=int(block),
            owner=owner,
            expires=now + ttl_s,
            fence=fence,
            identity=now_is,
        )
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
    """LeaseLost unless the lease is still its owner's, with its fencing number, has not expired, and its group is there.

    The group must be the one that it was granted for, not another that got its name.
    """
    _check_held(conn, lease, now=now)
    now_is = identity(conn, lease.group)
    if now_is != lease.identity:
        raise LeaseLost(
            f"{lease.group} was {'made anew' if now_is else 'dropped'} after block {lease.block} of it was leased: "
            "nothing was committed"
        )


def _check_held(conn: Connection, lease: Lease, *, now: float) -> None:
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
    found = [_checked(conn, lease, check, now=now) for lease in held]
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
    # also of a group that is gone: whoever makes it again need not wait for the lease to expire
    found = [_checked(conn, lease, _check_held, now=now) for lease in held]
    update_rows(
        conn,
        leases,
        [
            {"group_name": lease.group, "block": lease.block, "owner": "", "expires": 0.0}
            for lease in found
            if isinstance(lease, Lease)
        ],
    )


def _checked(
    conn: Connection, lease: Lease, check: Callable[..., None], *, now: float
) -> Lease | LeaseLost:
    try:
        check(conn, lease, now=now)
    except LeaseLost as lost:
        return lost
    return lease


def live(conn: Connection, group: str | None, *, now: float) -> list[Lease]:
    """Leases of a group (None: of all) that have not expired, by block: to look at, and to release."""
    return [
        Lease(group=row[0], block=row[1], owner=row[2], expires=row[3], fence=row[4])
        for row in verified_rows(conn, leases, group)
        if row[3] > now
    ]
