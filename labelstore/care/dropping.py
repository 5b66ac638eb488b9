"""Removing a label set, a mask or a crop plan, in an order that a kill cannot turn into a ledger row without bytes.

1. In one transaction the name and its ledger rows go, unless somebody alive holds a lease. Leases stay: their
   fencing numbers must never go back. Who had one, or asks for one later, finds that it is of no use any more.
2. The arrays' metadata is written again without it (intent, write, drop).
3. Under the catalogue's write lock, and only if the name was not given again meanwhile, its folder and its spool get
   temporary names; then these are deleted.

A kill after 1 leaves files that no ledger row names: dropping the same name again, or `gc`, removes them. Nobody
reads them: the spool says which label set it is of, and another one of the same name has another uuid.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from labelstore.arrays.durable import TEMPORARY_SUFFIX, fsync_folder, storage_errors
from labelstore.catalogue.records import Lease
from labelstore.commit.lease_keeper import is_dead
from labelstore.errors import ConflictError, UsageError
from labelstore.store.store import Store

Kind = Literal["label-set", "mask", "plan"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_FOLDERS: dict[Kind, str] = {"label-set": "labels", "mask": "masks", "plan": "crops"}


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """What `drop` removed, or would remove."""

    kind: Kind
    name: str
    shards: int
    """Committed shards."""
    bytes: int
    """What they weigh on disk."""
    notes: tuple[str, ...] = ()
    """What a reader should know."""


def what_drops(store: Store, kind: str, name: str) -> Dropped:
    """Return what dropping this would remove; UsageError for an unknown name, ConflictError where it is in use."""
    if kind not in KINDS:
        raise UsageError(f"{kind!r} cannot be dropped: choose one of {', '.join(KINDS)}")
    chosen = kind
    group = f"{_FOLDERS[chosen]}/{name}"
    names = {
        "label-set": store.label_sets,
        "mask": store.masks,
        "plan": tuple(row.name for row in store.catalogue.plans.all()),
    }[chosen]
    if name not in names and not _left_over(store, group):
        known = ", ".join(names) or "none"
        raise UsageError(f"no {kind} named {name!r} in {store.path}: it holds {known}")
    if chosen == "plan":
        on_it = [row.name for row in store.catalogue.label_sets.all() if row.plan == name]
        on_it += [row.name for row in store.catalogue.masks.all() if row.plan == name]
        if on_it:
            raise ConflictError(
                f"crop plan {name} of {store.path} is used by {', '.join(on_it)}: drop these first"
            )
    elif name in names:
        _refuse_busy(store, group, store.catalogue.leases.live(group))
    shards, size = store.catalogue.ledger.counts().get(group, (0, 0))
    return Dropped(
        kind=chosen, name=name, shards=shards, bytes=size, notes=_notes(store, chosen, name)
    )


def drop(store: Store, kind: str, name: str) -> Dropped:
    """Remove a label set, a mask or a crop plan without label sets; what it freed."""
    dropped = what_drops(store, kind, name)
    group = f"{_FOLDERS[dropped.kind]}/{name}"
    # asked again inside: a worker may have got a lease since
    store.catalogue.groups.drop(group, lambda live: _refuse_busy(store, group, live))
    store.write_metadata()
    _remove_files(store, group)
    store.refresh()
    return dropped


def _remove_files(store: Store, group: str) -> None:
    for folder in _folders(store, group):
        trash = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
        with storage_errors(folder):
            with store.catalogue.transaction() as conn:
                if store.catalogue.groups.is_registered(conn, group):
                    return  # made again meanwhile: its files belong to the new one
                try:
                    folder.rename(trash)
                except FileNotFoundError:
                    continue
            fsync_folder(folder.parent)
            shutil.rmtree(trash)


def _folders(store: Store, group: str) -> list[Path]:
    kind, _, name = group.partition("/")
    spools = [store.path / "spool" / name] if kind == _FOLDERS["label-set"] else []
    return [store.arrays.root / group, *spools]


def _left_over(store: Store, group: str) -> bool:
    """Files of a drop that was killed."""
    name = group.partition("/")[2]
    if "/" in name or name in ("", ".", ".."):
        return False
    return any(folder.is_dir() for folder in _folders(store, group))


def _refuse_busy(store: Store, group: str, live: Sequence[Lease]) -> None:
    if not live or group not in store.group_names():
        return
    whole = store.group_specs(group)[1].num_crop_shards
    committed = store.catalogue.ledger.committed(group)
    for lease in live:
        if len(committed.get(lease.block, ())) < whole and not is_dead(lease.owner):
            raise ConflictError(
                f"{group} in {store.path} is being written by {lease.owner}: stop that process first"
            )


def _notes(store: Store, kind: Kind, name: str) -> tuple[str, ...]:
    if kind != "label-set":
        return ()
    row = store.find_label_set(name)
    if row is None:
        return ()
    others = [
        other.name
        for other in store.catalogue.label_sets.all()
        if (other.teacher, other.plan) == (row.teacher, row.plan) and other.name != name
    ]
    masks = [
        mask.name
        for mask in store.catalogue.masks.all()
        if (mask.teacher, mask.plan) == (row.teacher, row.plan)
    ]
    if masks and not others:
        return (f"mask {', '.join(masks)} then has no label set of its teacher",)
    return ()
