"""Images that were added to the folder join the store: new rows after the old ones, which stay what they are.

A committed shard is never written again, so new images begin a new image block; rows between the last old image
and that block stay free for good (`Store.free`). Every label set of every plan is incomplete from then on, until
its teacher has labelled the new blocks, and a mask covers the blocks that it was made for until it is updated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labelstore.cropping.crop_plan import is_imported
from labelstore.errors import ConflictError, RejectedInput, UsageError
from labelstore.images import ImageSource, image_size, open_images
from labelstore.labelling.image_check import check_images
from labelstore.store import Store
from labelstore.store.layout import Layout, label_layout

ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class NewImages:
    """What taking in the new images of a folder does, or would do."""

    num_new: int
    """Images in the folder that the store did not have."""
    num_images: int
    """N, the new ones included."""
    first_row: int | None
    """Row of the first new image; None where there is none."""
    free_rows: int
    """Rows between the last old image and the first new one, which stay free."""
    unfinished: tuple[str, ...]
    """Label sets that have no labels for some images."""
    masks: tuple[str, ...]
    """Masks that do not cover all images."""


def plan_new_images(
    store: Store, images: str | Path | ImageSource, *, skip_bad: bool = False
) -> NewImages:
    """What `add_images` would do. Refuses what it refuses, and writes nothing."""
    new = _new_rows(store, open_images(images), skip_bad)
    first = -(-store.num_rows // _multiple(store)) * _multiple(store)
    return NewImages(
        num_new=len(new),
        num_images=store.num_images + len(new),
        first_row=first if len(new) else None,
        free_rows=first - store.num_rows if len(new) else 0,
        unfinished=store.label_sets if len(new) else unfinished(store),
        masks=store.masks if len(new) else uncovered(store),
    )


def add_images(
    store: Store, images: str | Path | ImageSource, *, skip_bad: bool = False
) -> NewImages:
    """Register the images of the folder that the store does not have; called again it finds nothing to do.

    Rows are never renumbered and no file of labels is touched. RejectedInput, naming it, for an image of the
    store that is gone or changed, for a new one that by its header is none (`skip_bad` lets it join, to be left out
    when labels are made), and for a folder of a class that the store does not have: class ids and the
    teachers' outputs belong to the classes that it was made with. UsageError for a plan of imported crops, which
    has none for other images. Nothing is written then.
    """
    folder = open_images(images)
    for attempt in range(ATTEMPTS):
        new = _new_rows(store, folder, skip_bad)
        before = store.num_rows
        try:
            rows = _append(store, folder, new)
            break
        except ConflictError:
            if attempt == ATTEMPTS - 1:
                raise
            store.refresh()  # another process took them in at this moment
    # also where nothing is new: the process that registered them may have been killed before this
    store.write_metadata()
    return NewImages(
        num_new=len(rows),
        num_images=store.num_images,
        first_row=rows.start if rows else None,
        free_rows=rows.start - before if rows else 0,
        unfinished=unfinished(store),
        masks=uncovered(store),
    )


def _append(store: Store, folder: ImageSource, new: NDArray[np.int64]) -> range:
    if not len(new):
        return range(0)
    ids = {name: number for number, name in enumerate(store.class_names)}
    rows = store.catalogue.images.append(
        [folder.keys[i] for i in new],
        [ids[folder.classes[folder.class_ids[i]]] for i in new],
        folder.sizes[new],
        folder.mtimes_ns[new],
        multiple=_multiple(store),
    )
    store.refresh()
    return rows


def _new_rows(store: Store, folder: ImageSource, skip_bad: bool) -> NDArray[np.int64]:
    """Positions in the folder of the images that the store does not have."""
    strange = [name for name in folder.classes if name not in set(store.class_names)]
    if strange:
        raise RejectedInput(
            f"{folder.root}: {strange[0]} is a class that {store.path} does not have ({len(strange)} new): class ids "
            "and teachers' outputs belong to the classes that it was made with; leave its images out, or make "
            "another store"
        )
    check_images(store, folder, lambda message: None, skip_bad=skip_bad)
    known = set(store.image_columns["key"])
    new = np.array([i for i, key in enumerate(folder.keys) if key not in known], np.int64)
    imported = [row.name for row in store.catalogue.plans.all() if is_imported(row.parameters)]
    if len(new) and imported:
        raise UsageError(
            f"crop plan {imported[0]} was imported with its labels and has no crops for {folder.keys[new[0]]}: "
            "drop it first (`labelstore drop plan`), or make another store"
        )
    for i in () if skip_bad else new:
        try:
            image_size(folder.file(folder.keys[i]))
        except RejectedInput as error:
            raise RejectedInput(
                f"{error}; `skip_bad` lets such images join, and leaves them out when labels are made"
            ) from None
    return new


def _multiple(store: Store) -> int:
    """Rows at which an image block of every plan begins."""
    return math.lcm(*(row.images_per_shard for row in store.catalogue.plans.all()), 1)


def unfinished(store: Store) -> tuple[str, ...]:
    """Label sets that lack labels for some crops or images."""
    found = []
    for row in store.catalogue.label_sets.all():
        layout = label_layout(row, store.plan(row.plan), store.num_rows)
        if not _is_whole(store, f"labels/{row.name}", layout):
            found.append(row.name)
    return tuple(found)


def uncovered(store: Store) -> tuple[str, ...]:
    """Masks that do not cover all crops and images."""
    return tuple(
        row.name
        for row in store.catalogue.masks.all()
        if row.num_crops < store.plan(row.plan).num_crops
        or not _is_whole(
            store, f"masks/{row.name}", Layout.of(store.plan(row.plan), store.num_rows)
        )
    )


def _is_whole(store: Store, group: str, layout: Layout) -> bool:
    committed = store.catalogue.ledger.committed(group)
    return sum(map(len, committed.values())) >= layout.num_blocks * layout.num_crop_shards
