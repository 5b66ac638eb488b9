"""Images of all stores as one list, what each store has of them, and their order in the merged store.

Whether an image has labels is known per image block and crop shard, and a shard of the merged store can only be
committed when each of its images has them. So images with the same labels missing come together, the whole ones first,
each such group in blocks of its own: then exactly what no store has stays not generated. Within a group the order is
the image folder's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.errors import ConflictError
from labelstore.sharing.matching import Matched
from labelstore.store import Store
from labelstore.store.layout import Layout, label_layout

NOWHERE = -1


@dataclass(frozen=True, kw_only=True)
class Union:
    """U images, each once; per store S."""

    stores: tuple[Store, ...]
    keys: tuple[str, ...]
    """(U,) in the order of an image folder."""
    class_ids: NDArray[np.int64]
    rows: NDArray[np.int64]
    """(S, U) row of each image in each store; -1 where the store has nothing of it."""
    bad: Mapping[int, str]
    """Images that no store could use -> why."""
    overlapping: int

    @cached_property
    def place(self) -> dict[str, int]:
        """Key -> number of the image."""
        return {key: at for at, key in enumerate(self.keys)}

    def column(self, name: str) -> NDArray[Any]:
        """(U, ...) a column of the images table, from the first store that knows it."""
        known = "has_digest" if name in ("width", "height", "digest", "has_digest") else None
        joined: NDArray[Any] | None = None
        for store, rows in reversed(list(zip(self.stores, self.rows, strict=True))):
            column = store.image_columns[name]
            if joined is None:
                joined = np.zeros((len(self.keys), *column.shape[1:]), column.dtype)
            at = np.flatnonzero(rows >= 0)
            if known is not None:
                at = at[store.image_columns[known][rows[at]]]
            joined[at] = column[rows[at]]
        assert joined is not None
        return joined


def union_of(stores: Sequence[Store]) -> Union:
    """The images of all stores. ConflictError, naming the key, for one that is not the same in two of them."""
    place: dict[str, int] = {}
    class_ids: list[int] = []
    rows_of_stores: list[dict[int, int]] = []
    for store in stores:
        columns, mine = store.image_columns, {}
        for row in np.flatnonzero(~store.free).tolist():
            at = place.setdefault(columns["key"][row], len(place))
            if at == len(class_ids):
                class_ids.append(int(columns["class_id"][row]))
            mine[at] = row
        rows_of_stores.append(mine)
    unsorted = np.full((len(stores), len(place)), NOWHERE, np.int64)
    for number, mine in enumerate(rows_of_stores):
        unsorted[number, list(mine)] = list(mine.values())
    keys = list(place)

    def of_folder(at: int) -> tuple[int, str, str]:
        folder, _, name = keys[at].rpartition("/")
        return class_ids[at], folder, name

    order = np.array(sorted(range(len(keys)), key=of_folder), np.int64)
    rows = unsorted[:, order]
    sorted_keys = tuple(keys[at] for at in order)
    overlapping = int(((rows >= 0).sum(axis=0) > 1).sum())
    ids = np.array(class_ids, np.int64)[order]
    _check_equal(stores, sorted_keys, rows)
    bad = _leave_bad_ones_to_others(stores, rows)
    return Union(
        stores=tuple(stores),
        keys=sorted_keys,
        class_ids=ids,
        rows=rows,
        bad=bad,
        overlapping=overlapping,
    )


def _check_equal(stores: Sequence[Store], keys: Sequence[str], rows: NDArray[np.int64]) -> None:
    """Every pair that shares images: the same pixels, and the same class."""
    for second in range(1, len(stores)):
        for first in range(second):
            both = np.flatnonzero((rows[first] >= 0) & (rows[second] >= 0))
            if not len(both):
                continue
            a, b = stores[first].image_columns, stores[second].image_columns
            at, to = rows[first, both], rows[second, both]
            known = a["has_digest"][at] & b["has_digest"][to]
            other_pixels = known & (a["digest"][at] != b["digest"][to]).any(axis=1)
            # of an image that has not been decoded yet only the file's length is known
            lengths = (a["size"][at] >= 0) & (b["size"][to] >= 0)
            other_pixels |= ~known & lengths & (a["size"][at] != b["size"][to])
            for what, differs in (
                ("is another file", other_pixels),
                ("is of another class", a["class_id"][at] != b["class_id"][to]),
            ):
                if differs.any():
                    raise ConflictError(
                        f"image {keys[both[differs][0]]!r} {what} in {stores[second].location} than in "
                        f"{stores[first].location} ({int(differs.sum())} such images): parts of one data set share "
                        "images only where these are the same"
                    )


def _leave_bad_ones_to_others(stores: Sequence[Store], rows: NDArray[np.int64]) -> dict[int, str]:
    """Images that no store could use -> why; a store that left an image out has nothing of it, if another is not bad.

    Changes `rows` in place.
    """
    is_bad = np.zeros(rows.shape, bool)
    for number, store in enumerate(stores):
        here = rows[number] >= 0
        is_bad[number, here] = store.bad[rows[number, here]]
    everywhere = (is_bad | (rows < 0)).all(axis=0)
    rows[is_bad & ~everywhere] = NOWHERE
    reasons: dict[int, str] = {}
    for at in np.flatnonzero(everywhere).tolist():
        number = int(np.argmax(rows[:, at] >= 0))
        reasons[at] = str(stores[number].image_columns["bad"][rows[number, at]])
    return reasons


def chosen_stores(union: Union, matched: Matched) -> dict[str, NDArray[np.int16]]:
    """Per group of labels and masks, (U, crop shards): the first store that has the image's shard, -1 for none.

    A mask's come from the store that the labels come from.
    """
    chosen: dict[str, NDArray[np.int16]] = {}
    for row in matched.label_sets:
        chosen[f"labels/{row.name}"] = _first(available(union, f"labels/{row.name}"))
    for mask in matched.masks:
        there = available(union, f"masks/{mask.name}")
        labels = chosen[f"labels/{mask.label_set}"]
        for number, has in enumerate(there):
            # a label map has one shard for all crops
            has &= labels[:, : has.shape[1]] == number
        chosen[f"masks/{mask.name}"] = _first(there)
    return chosen


def layout_of(store: Store, group: str) -> Layout:
    """How a group is cut, also where nothing of it is there yet."""
    kind, _, name = group.partition("/")
    if kind != "labels":
        return store.group_specs(group)[1]
    row = store.label_set_row(name)
    return label_layout(row, store.plan(row.plan), store.num_rows)


def available(union: Union, group: str) -> list[NDArray[np.bool_]]:
    """Per store (U, crop shards) whether it has the image's shard of a group."""
    found, width = [], 0
    for store, rows in zip(union.stores, union.rows, strict=True):
        if group not in store.group_names():
            found.append(np.zeros((len(rows), 0), bool))
            continue
        layout = layout_of(store, group)
        width = layout.num_crop_shards
        committed = np.zeros((layout.num_blocks + 1, width), bool)  # the last is nowhere's
        for block, shards in store.catalogue.ledger.committed(group).items():
            for shard in shards:
                if block < layout.num_blocks and shard < width:
                    committed[block, shard] = True
        at = np.where(rows >= 0, rows // layout.images_per_shard, layout.num_blocks)
        found.append(committed[at])
    return [has if has.shape[1] else np.zeros((len(has), width), bool) for has in found]


def _first(there: Sequence[NDArray[np.bool_]]) -> NDArray[np.int16]:
    stacked = np.stack(there)
    return np.where(stacked.any(axis=0), stacked.argmax(axis=0), NOWHERE).astype(np.int16)


def groups_of_images(
    union: Union, chosen: Mapping[str, NDArray[np.int16]]
) -> list[NDArray[np.int64]]:
    """Numbers of the images, in groups for which the same labels are there: those with all of them first."""
    there = np.concatenate([stores >= 0 for stores in chosen.values()], axis=1)
    there[list(union.bad)] = True  # nothing is expected of them
    patterns, which = np.unique(there, axis=0, return_inverse=True)
    which = which.reshape(-1)
    # most labels first, equals by what they have first
    order = sorted(
        range(len(patterns)), key=lambda at: (-patterns[at].sum(), (~patterns[at]).tolist())
    )
    return [np.flatnonzero(which == at) for at in order]
