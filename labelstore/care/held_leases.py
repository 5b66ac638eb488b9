"""Leases of a store to look at, and to take from workers that will not come back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from labelstore.catalogue.block_leases import is_live
from labelstore.commit.lease_keeper import is_dead, process_of
from labelstore.errors import UsageError

if TYPE_CHECKING:
    from labelstore.catalogue.records import Lease
    from labelstore.store import Store

LeaseState = Literal["live", "dead", "expired", "void"]


@dataclass(frozen=True, kw_only=True)
class HeldLease:
    """One image block that a worker has leased and not given up."""

    group: str
    """labels/NAME or masks/NAME."""
    block: int
    owner: str
    """As the catalogue has it."""
    process: str
    """The same in words."""
    expires: float
    """Unix seconds by the catalogue's clock."""
    seconds_left: float
    """Negative once it has expired."""
    state: LeaseState
    """live; dead: its process was on this machine and is gone; expired; void: it expires later than any lease lasts.
    Only a live one keeps other workers from the block."""


def held_leases(store: Store) -> tuple[HeldLease, ...]:
    """Every lease of the store that its owner has not given up, by group and block."""
    now = store.catalogue.leases.now()
    return tuple(_held(lease, now) for lease in store.catalogue.leases.owned())


def break_leases(
    store: Store, processes: Iterable[str], *, dry_run: bool = False
) -> tuple[HeldLease, ...]:
    """Give up the leases of these owners, named as `HeldLease` has them (`owner` or `process`); those given up.

    With `dry_run` those that would be.

    A worker that is alive after all commits nothing under a lease that was broken: it leases again. UsageError for an
    owner without a lease.
    """
    leases = store.catalogue.leases
    now, wanted = leases.now(), set(processes)
    found = [
        (lease, _held(lease, now))
        for lease in leases.owned()
        if wanted & {lease.owner, process_of(lease.owner)}
    ]
    unknown = wanted.difference(*({held.owner, held.process} for _, held in found))
    if unknown:
        raise UsageError(
            f"no lease in {store.location} is held by {min(unknown)!a}: give an owner as `labelstore leases` lists it"
        )
    if not dry_run:
        leases.release(*(lease for lease, _ in found))
    return tuple(held for _, held in found)


def _held(lease: Lease, now: float) -> HeldLease:
    if is_live(lease.expires, now=now):
        state: LeaseState = "dead" if is_dead(lease.owner) else "live"
    else:
        state = "void" if lease.expires > now else "expired"
    return HeldLease(
        group=lease.group,
        block=lease.block,
        owner=lease.owner,
        process=process_of(lease.owner),
        expires=lease.expires,
        seconds_left=lease.expires - now,
        state=state,
    )
