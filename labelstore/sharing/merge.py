"""`labelstore merge`: stores that were made on different machines for parts of one data set become one."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labelstore.arrays.durable import check_new_place
from labelstore.commit.lease_keeper import Progress, is_dead
from labelstore.errors import ConflictError, UsageError
from labelstore.sharing.agreement import agreement_of
from labelstore.sharing.copying import Copying
from labelstore.sharing.matching import match
from labelstore.sharing.merged_catalogue import add_records, check_target, num_lacking, register
from labelstore.sharing.union import Union, chosen_stores, union_of
from labelstore.store import Store, open_store
from labelstore.store.layout import MOST_IMAGES_PER_SHARD
from labelstore.store.opening import ARRAY_FOLDERS, exists, refuse_remote, storage_url

MOST_STORES = 1000


def merge(
    out: str | Path,
    stores: Sequence[str | Path],
    *,
    backend: str | None = None,
    images_per_shard: int | None = None,
    dry_run: bool = False,
    progress: Progress = lambda done, total: None,
) -> MergeReport:
    """Make one store at `out` of the stores of parts of a data set, which stay as they are.

    Classes, crop plans, teachers' weights, codecs and circumstances of label sets of one name must be equal; an image
    that several stores have must be the same file, with labels that agree within what `audit` allows: the first
    store's are taken. Rows are numbered again, arrays copied as they are. Labels that no store has stay not
    generated. Called again after a kill it goes on, and takes what the stores have got since. `backend` is the first
    store's, `images_per_shard` the largest of the stores', where they are not given.

    ConflictError where the stores do not fit together, or `out` is something else; UsageError for fewer than two
    stores or the same one twice, and for an `out` inside a store. Nothing is written then. DamagedShard where a
    store's bytes are damaged.
    """
    started = time.monotonic()
    out = Path(out)
    _check(out, stores, backend, images_per_shard)
    with ExitStack() as opened:
        sources = [opened.enter_context(open_store(path, readonly=True)) for path in stores]
        matched = match(sources, images_per_shard)
        union = union_of(sources)
        if exists(out):
            with open_store(out, readonly=True) as there:
                check_target(there, matched, union)
                _check_layout(there, backend, images_per_shard)
        elif out.exists():
            raise ConflictError(f"{out} exists already: give another path, or remove it first")
        agreements = {row.name: agreement_of(union, row) for row in matched.label_sets}
        chosen = chosen_stores(union, matched)
        done = already = 0
        lacking = {
            row.name: _lacking(union, chosen[f"labels/{row.name}"]) for row in matched.label_sets
        }
        if not dry_run:
            if not exists(out):
                register(out, matched, union, chosen, backend or sources[0].arrays.name)
            with open_store(out) as target:
                add_records(target, matched, union)
                copying = Copying(target=target, union=union, chosen=chosen)
                done, already = copying.fill(progress)
                lacking = {row.name: num_lacking(target, row.name) for row in matched.label_sets}
        return MergeReport(
            path=out,
            stores=tuple(str(store.location) for store in sources),
            num_images=len(union.keys),
            overlapping=union.overlapping,
            num_bad=len(union.bad),
            label_sets=tuple(
                MergedLabels(
                    name=row.name,
                    from_stores=_shares(chosen[f"labels/{row.name}"], len(sources)),
                    lacking=lacking[row.name],
                    compared=agreements[row.name].compared,
                    largest_difference=agreements[row.name].largest,
                )
                for row in matched.label_sets
            ),
            masks=tuple(row.name for row in matched.masks),
            notes=(*matched.notes, *filter(None, map(_being_written, sources))),
            shards=done,
            already=already,
            dry_run=dry_run,
            seconds=time.monotonic() - started,
        )


def _check(
    out: Path, stores: Sequence[str | Path], backend: str | None, images_per_shard: int | None
) -> None:
    refuse_remote(out, "a store cannot be made there")
    if not exists(out):
        check_new_place(out)
    if not 2 <= len(stores) <= MOST_STORES:
        raise UsageError(f"{len(stores)} stores given: merge 2 to {MOST_STORES}")
    if backend is not None and backend not in ARRAY_FOLDERS:
        raise UsageError(f"`backend={backend}`: choose one of {', '.join(ARRAY_FOLDERS)}")
    if images_per_shard is not None and not 1 <= images_per_shard <= MOST_IMAGES_PER_SHARD:
        raise UsageError(f"`images_per_shard={images_per_shard}`: 1 to {MOST_IMAGES_PER_SHARD:,}")
    places: set[str] = set()
    for path in stores:
        url = storage_url(path)
        place = os.path.realpath(path) if url is None else url.rstrip("/")
        if place in places:
            raise UsageError(f"{path} is given twice: give each store once")
        if url is None and os.path.realpath(out) == place:
            raise UsageError(f"{out} is one of the stores: give OUT a path of its own, first")
        places.add(place)


def _check_layout(there: Store, backend: str | None, images_per_shard: int | None) -> None:
    """ConflictError where a merged store that is to go on was begun with another layout than asked for."""
    heights = {row.images_per_shard for row in there.catalogue.plans.all()}
    for name, asked, held in (
        ("backend", backend, {there.arrays.name}),
        ("images_per_shard", images_per_shard, heights),
    ):
        if asked is not None and held != {asked}:
            has = ", ".join(map(str, sorted(held, key=str)))
            raise ConflictError(
                f"{there.path} exists with {has}, asked for `{name}={asked}`: leave it out, or merge into a new store"
            )


def _shares(stores: NDArray[np.int16], count: int) -> tuple[int, ...]:
    """Images that come from each store, by their first crop."""
    first = stores[:, 0]
    return tuple(np.bincount(first[first >= 0], minlength=count).tolist())


def _lacking(union: Union, stores: NDArray[np.int16]) -> int:
    lacks = np.asarray((stores < 0).any(axis=1))
    lacks[list(union.bad)] = False
    return int(np.count_nonzero(lacks))


def _being_written(store: Store) -> str:
    busy = [lease for lease in store.catalogue.leases.live() if not is_dead(lease.owner)]
    if not busy:
        return ""
    return (
        f"{store.location} is being written: what it has committed is merged; "
        "run the same command again for the rest"
    )


@dataclass(frozen=True, kw_only=True)
class MergedLabels:
    """One label set of the merged store."""

    name: str
    from_stores: tuple[int, ...]
    """Images that come from each store, in the order in which the stores were given."""
    lacking: int
    """Images without labels for some crop: no store has them."""
    compared: int
    """Crops that two stores have and that were compared."""
    largest_difference: float
    """Largest difference of a probability among these."""


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What a merge did, or would do."""

    path: Path
    stores: tuple[str, ...]
    num_images: int
    """N of the merged store."""
    overlapping: int
    """Images that more than one store has."""
    num_bad: int
    """Images that are left out: no store could use them."""
    label_sets: tuple[MergedLabels, ...]
    masks: tuple[str, ...]
    notes: tuple[str, ...]
    """What a reader should know, a line each: masks that were dropped, stores that are being written."""
    shards: int
    """Shards that the stores have labels for."""
    already: int
    """Those that an earlier call had committed."""
    dry_run: bool
    seconds: float

    @property
    def is_complete(self) -> bool:
        """True where every image has every label."""
        return not any(labels.lacking for labels in self.label_sets)
