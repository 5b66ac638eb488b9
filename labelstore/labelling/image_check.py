"""Are the photographs in the folder still those that the store was made from?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from labelstore.commit.spool import read_spools
from labelstore.errors import RejectedInput
from labelstore.images import ImageFolder, ImageSource, digest, ignored_words, is_hidden
from labelstore.store import Store
from labelstore.store.layout import label_layout

DIGESTS_CHECKED = 1000
GONE_AT_MOST = 10
"""`skip_bad` leaves out one image in so many that is gone: where more are, the folder is another or half mounted."""


def note_ignored(folder: ImageSource, note: Callable[[str], None]) -> None:
    """Say how many files beside the images are not labelled, and why."""
    if words := ignored_words(folder.ignored):
        note(f"{folder.root}: {words}")


def check_images(
    store: Store,
    folder: ImageSource,
    note: Callable[[str], None],
    *,
    skip_bad: bool | None = None,
) -> frozenset[int]:
    """Compare size and modification time of every image, and digests of up to 1,000 that were touched.

    RejectedInput naming the first image that is missing or changed. What was left out as bad may be either, and an
    image that no labels were made of may have changed. Such an image that is missing is refused where labels are to
    be made (`skip_bad` False), and its row is returned where it is to be left out (True).
    Images that are new in the folder are only noted: they have no labels and are not drawn.
    """
    note_ignored(folder, note)
    if isinstance(folder, ImageFolder) and any(map(is_hidden, store.image_columns["key"])):
        folder = folder.with_hidden()
    rows = np.flatnonzero(~store.free)
    columns = {name: column[rows] for name, column in store.image_columns.items()}
    used = ~store.bad[rows]
    row_of_file = {key: i for i, key in enumerate(folder.keys)}
    at = np.array([row_of_file.get(key, -1) for key in columns["key"]], np.int64)
    gone = np.flatnonzero((at < 0) & used)
    if len(gone):
        _check_gone(store, folder, rows[gone], skip_bad)
    if new := len(folder.keys) - int((at >= 0).sum()):
        note(f"{new} images in {folder.root} are not in the store and get no labels")
    there = used & (at >= 0)
    sizes, mtimes = np.asarray(folder.sizes)[at], np.asarray(folder.mtimes_ns)[at]
    resized = np.flatnonzero(there & (sizes != columns["size"]) & (columns["size"] >= 0))
    known = there & columns["has_digest"].astype(bool)
    touched = np.flatnonzero(known & (mtimes != columns["mtime_ns"]))
    if len(touched) > DIGESTS_CHECKED:
        touched = np.random.default_rng(0).choice(touched, DIGESTS_CHECKED, replace=False)
    # without a digest an image has labels only where they were imported
    unknown = resized[~known[resized]]
    for row in unknown[_have_labels(store, rows[unknown])][:1].tolist():
        raise _changed(folder, columns["key"][row])
    for row in [*resized[known[resized]].tolist(), *touched.tolist()]:  # of `columns`
        key = columns["key"][row]
        if digest(folder.file(key).read_bytes()) != columns["digest"][row].tobytes():
            raise _changed(folder, key)
    return frozenset(rows[gone].tolist())


def _changed(folder: ImageSource, key: str) -> RejectedInput:
    return RejectedInput(
        f"{folder.file(key)} changed since the store was made: restore the file, or make a new store"
    )


def _check_gone(
    store: Store, folder: ImageSource, rows: NDArray[np.int64], skip_bad: bool | None
) -> None:
    """RejectedInput unless none of these image rows, which are not in the folder, has labels or is to get any."""
    keys = store.image_columns["key"]
    labelled = rows[_have_labels(store, rows)]
    if not len(labelled) and skip_bad is None:
        return
    first = keys[labelled[0] if len(labelled) else rows[0]]
    what = f"{first} of the store is not in {folder.root} ({len(rows)} missing)"
    if len(labelled):
        raise RejectedInput(f"{what}: give the folder that the store was made from")
    most = max(1, store.num_images // GONE_AT_MOST)
    if len(rows) > most:
        raise RejectedInput(
            f"{what}: give the folder that the store was made from (`skip_bad` leaves out at most {most} that are gone)"
        )
    if not skip_bad:
        raise RejectedInput(
            f"{what} and has no labels yet: bring it back, or give `skip_bad` to leave it out for good"
        )


def _have_labels(store: Store, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,) whether labels were made of these image rows, committed or still in a spool."""
    labelled = store.image_columns["has_digest"][rows].astype(bool)
    if not len(rows) or any(plan.parameters.get("mixed") for plan in store.catalogue.plans.all()):
        return np.ones(len(rows), bool)  # crops of other images may be mixed with it
    for row in store.catalogue.label_sets.all():
        layout = label_layout(row, store.plan(row.plan), store.num_rows)
        blocks = rows // layout.images_per_shard
        labelled |= np.isin(blocks, list(store.catalogue.ledger.committed(f"labels/{row.name}")))
        for block in np.unique(blocks[~labelled]).tolist():
            spooled = read_spools(store.path / "spool" / row.name, block, row.uuid)
            labelled |= np.isin(rows, list(spooled))
    return labelled
