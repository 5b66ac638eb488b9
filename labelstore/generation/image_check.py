"""Are the photographs in the folder still those that the store was made from?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from labelstore.errors import RejectedInput
from labelstore.images import ImageSource, digest
from labelstore.store import Store

DIGESTS_CHECKED = 1000


def check_images(store: Store, folder: ImageSource, note: Callable[[str], None]) -> None:
    """Compare size and modification time of every image, and digests of up to 1,000 that were touched.

    RejectedInput naming the first image that is missing or changed. Images that are new in the folder are
    only noted: they have no labels and are not drawn.
    """
    rows = np.flatnonzero(~store.free)
    columns = {name: column[rows] for name, column in store.image_columns.items()}
    held = {key: i for i, key in enumerate(folder.keys)}
    at = np.array([held.get(key, -1) for key in columns["key"]], np.int64)
    if (at < 0).any():
        missing = columns["key"][int(np.flatnonzero(at < 0)[0])]
        raise RejectedInput(
            f"{missing} of the store is not in {folder.root} ({int((at < 0).sum())} missing): "
            "give the folder that the store was made from"
        )
    if len(folder.keys) > len(at):
        note(
            f"{len(folder.keys) - len(at)} images in {folder.root} are not in the store and get no labels"
        )
    sizes, mtimes = np.asarray(folder.sizes)[at], np.asarray(folder.mtimes_ns)[at]
    resized = np.flatnonzero((sizes != columns["size"]) & (columns["size"] >= 0))
    touched = np.flatnonzero(mtimes != columns["mtime_ns"])
    if len(touched) > DIGESTS_CHECKED:
        touched = np.random.default_rng(0).choice(touched, DIGESTS_CHECKED, replace=False)
    for row in [*resized.tolist(), *touched.tolist()]:  # of `columns`
        path = folder.file(columns["key"][row])
        known = columns["digest"][row].tobytes() if columns["has_digest"][row] else None
        if row in resized or (known is not None and digest(path.read_bytes()) != known):
            raise RejectedInput(
                f"{path} changed since the store was made: restore the file, or make a new store"
            )
