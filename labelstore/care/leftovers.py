"""Files that no catalogue row names: what a killed worker leaves behind, and what `gc` may remove of it.

A file may go when it is of a kind that this package writes, older than an hour, and no worker holds a
lease on its image block. Whatever else lies in the folder is named and left alone.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from labelstore.arrays.durable import is_temporary, storage_errors
from labelstore.catalogue.records import Lease
from labelstore.errors import StorageError
from labelstore.store import Store
from labelstore.store.layout import label_layout
from labelstore.store.opening import (
    ARRAY_FOLDERS,
    CATALOGUE_FILE,
    CATALOGUE_URL_FILE,
    MANIFEST_FILE,
    refuse_remote,
)

MIN_AGE_SECONDS = 3600.0
SPOOL_FOLDER = "spool"

Kind = Literal["temporary", "spool", "orphan", "foreign", "building"]

_SHARD_NAME = re.compile(r"c\.(\d+)(?:\.\d+)*|(\d+)\.\d+\.h5")
_SPOOL_NAME = re.compile(r"(\d+)-\d+\.spool")
_METADATA_NAMES = ("zarr.json", "arrays.json")
_OWN = (
    CATALOGUE_FILE,
    f"{CATALOGUE_FILE}-journal",
    CATALOGUE_URL_FILE,
    MANIFEST_FILE,
)


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """One file in a store's folder that nothing refers to."""

    path: str
    """Relative to the store, POSIX."""
    kind: Kind
    """temporary: written and never renamed; spool: labels of a block that is committed, or of a label set that was
    dropped; orphan: renamed and never committed; building: beside the store, where a create or freeze of its name was
    killed; foreign: not of a kind that this package writes, and never removed."""
    bytes: int
    age_seconds: float
    """Since it was last written."""
    block: int | None = None
    """Image block that it was written for, where the name says so."""


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What `gc` removed (or would remove), and what it left."""

    removed: tuple[Leftover, ...]
    kept: tuple[tuple[Leftover, str], ...]
    """With the reason."""
    dry_run: bool = False

    @property
    def bytes(self) -> int:
        """Bytes of what was removed."""
        return sum(leftover.bytes for leftover in self.removed)

    def to_record(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "dry_run": self.dry_run,
            "removed": [vars(leftover) for leftover in self.removed],
            "kept": [vars(leftover) | {"reason": reason} for leftover, reason in self.kept],
            "bytes": self.bytes,
        }


def leftovers(store: Store) -> tuple[Leftover, ...]:
    """Every file in the store's folder that no catalogue row names, by path."""
    # files first: what is committed after the ledger was read must not be taken for an orphan
    files = sorted(_files(store.path))
    root = store.arrays.root.relative_to(store.path).as_posix()
    known = {*_OWN, *(f"{root}/{key}" for key in _named(store))}
    committed = _committed_blocks(store)
    listed = []
    for path, status in files:
        if path in known:
            continue
        kind, block = _kind(path, root, status)
        if kind == "spool":
            group = f"labels/{path.split('/')[1]}"
            if group in committed and block not in committed[group]:
                continue  # the next holder of the lease goes on from it
        age = max(0.0, time.time() - status.st_mtime)
        listed.append(
            Leftover(path=path, kind=kind, bytes=status.st_size, age_seconds=age, block=block)
        )
    return tuple(listed)


def gc(
    store: Store, *, dry_run: bool = False, min_age_seconds: float = MIN_AGE_SECONDS
) -> Collected:
    """Remove temporary files, finished spools and orphans, if they are old enough and unused.

    Nothing that the ledger names is touched, and no file that this package would not write.
    """
    refuse_remote(store.location, "there is nothing to remove")
    # folders in which a killed `create` or `freeze` was building a store of this name
    building = [
        (Leftover(path=f"../{path.name}", kind="building", bytes=size, age_seconds=age), path)
        for path, size, age in build_folders(store.path)
    ]
    beside = _collect(building, [], min_age_seconds, dry_run=dry_run)
    if not leftovers(store):
        return beside
    # under the catalogue's write lock no process commits between our look and the removal
    with nullcontext() if dry_run else store.catalogue.transaction():
        inside = _collect(
            [(leftover, store.path / leftover.path) for leftover in leftovers(store)],
            store.catalogue.leases.live(),
            min_age_seconds,
            dry_run=dry_run,
        )
    return Collected(
        removed=beside.removed + inside.removed, kept=beside.kept + inside.kept, dry_run=dry_run
    )


def _collect(
    candidates: Iterable[tuple[Leftover, Path]],
    live: Sequence[Lease],
    min_age_seconds: float,
    *,
    dry_run: bool,
) -> Collected:
    """Remove leftovers at their paths, but for those that a reason keeps."""
    removed: list[Leftover] = []
    kept: list[tuple[Leftover, str]] = []
    for leftover, path in candidates:
        reason = _reason_to_keep(leftover, live, min_age_seconds)
        if reason is not None:
            kept.append((leftover, reason))
            continue
        if not dry_run:
            with storage_errors(path):
                if leftover.kind == "building":
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        removed.append(leftover)
    return Collected(removed=tuple(removed), kept=tuple(kept), dry_run=dry_run)


def _reason_to_keep(
    leftover: Leftover, live: Sequence[Lease], min_age_seconds: float
) -> str | None:
    if leftover.kind == "foreign":
        return "not a file that labelstore writes"
    if leftover.age_seconds < min_age_seconds:
        return f"written {leftover.age_seconds:.0f} s ago, less than {min_age_seconds:.0f}"
    for lease in live:
        # whatever the group: a worker with a lease on labels also writes the block's crops
        if leftover.block is None or lease.block == leftover.block:
            return f"image block {lease.block} of {lease.group} is leased by {lease.owner}"
    return None


def _kind(path: str, root: str, status: os.stat_result) -> tuple[Kind, int | None]:
    folder, _, name = path.rpartition("/")
    if not stat.S_ISREG(status.st_mode):
        return "foreign", None
    if folder.partition("/")[0] == SPOOL_FOLDER and folder.count("/") == 1:
        match = _SPOOL_NAME.fullmatch(name)
        return ("spool", int(match[1])) if match else ("foreign", None)
    if folder != root and not folder.startswith(f"{root}/"):
        return ("temporary", None) if is_temporary(name) and not folder else ("foreign", None)
    if is_temporary(name):
        # .NAME.PID-RANDOM.tmp
        return "temporary", _block(name[1:].rsplit(".", 2)[0])
    if name in _METADATA_NAMES or _SHARD_NAME.fullmatch(name):
        return "orphan", _block(name)
    return "foreign", None


def _block(name: str) -> int | None:
    match = _SHARD_NAME.fullmatch(name)
    return None if match is None else int(match[1] or match[2])


def _named(store: Store) -> Iterator[str]:
    """Keys of all files in the array folder that the catalogue knows."""
    for key, digests in store.catalogue.metadata.digests().items():
        if digests != {""}:
            yield key
    for group in store.catalogue.ledger.counts():
        for row in store.catalogue.ledger.shards(group):
            for file in row.files:
                yield file.key


def _committed_blocks(store: Store) -> dict[str, frozenset[int]]:
    """Per label set the image blocks that are complete: their spools are of no more use."""
    committed = {}
    for row in store.catalogue.label_sets.all():
        layout = label_layout(row, store.plan(row.plan), store.num_rows)
        whole = layout.num_crop_shards
        shards = store.catalogue.ledger.committed(f"labels/{row.name}")
        committed[f"labels/{row.name}"] = frozenset(
            block for block, there in shards.items() if len(there) == whole
        )
    return committed


def _files(folder: Path, prefix: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """Everything below a folder that is not a folder: (POSIX path, status), no link followed."""
    try:
        with storage_errors(folder):
            entries = list(os.scandir(folder))
    except StorageError:
        if folder.exists():
            raise
        return  # removed meanwhile
    for entry in entries:
        path = f"{prefix}{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            yield from _files(Path(entry.path), f"{path}/")
            continue
        try:
            yield path, entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue  # a worker renamed it meanwhile


_BUILT = {"catalogue.db", "catalogue.db-journal", "labelstore.json", *ARRAY_FOLDERS.values()}
"""All that a folder being built can hold; others' folders are left alone."""


def build_folders(store: Path) -> Iterator[tuple[Path, int, float]]:
    """(folder, bytes, seconds since anything in it was written) of every one beside a store."""
    name = re.compile(rf"\.{re.escape(store.name)}\.[0-9a-f]{{8}}\.tmp")
    parent = store.absolute().parent
    with storage_errors(parent):
        candidates = [entry for entry in os.scandir(parent) if name.fullmatch(entry.name)]
    for entry in candidates:
        folder = Path(entry.path)
        if not entry.is_dir(follow_symlinks=False):
            continue
        names = {inner.name for inner in folder.iterdir() if not inner.name.endswith(".tmp")}
        if names - _BUILT:
            continue
        size, newest = 0, entry.stat(follow_symlinks=False).st_mtime
        for root, _, files in os.walk(folder):
            for path in (Path(root), *(Path(root) / file for file in files)):
                try:
                    status = path.lstat()
                except FileNotFoundError:
                    continue  # being built: renamed meanwhile
                newest = max(newest, status.st_mtime)
                size += status.st_size if path != Path(root) else 0
        yield folder, size, max(0.0, time.time() - newest)
