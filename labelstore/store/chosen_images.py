"""What a caller names, looked at: images by row or by key, crops by number, and the chunks that hold them."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.errors import UsageError
from labelstore.images import check_key

if TYPE_CHECKING:
    from labelstore.store.label_set import Images
    from labelstore.store.store import Store

FEW_KEYS = 16
"""Up to so many keys are looked up without reading all images."""


def image_rows(store: Store, images: Images) -> NDArray[np.int64]:
    """Image rows (n,) of rows or keys, in the order given; UsageError for one that the store does not hold.

    Rows are whole numbers: 2.7 is no image, nor is True.
    """
    rows = _checked_rows(_numbers(store, images), store.num_rows)
    # free rows are told by the images table, which is read as a whole: not where there are none
    if len(rows) and store.num_rows > store.num_images and store.free[rows].any():
        raise UsageError(
            f"image row {rows[store.free[rows]][0]}: no image has it, as in store.images()['image']"
        )
    return rows


def whole_number(value: Any, what: str) -> int:  # noqa: ANN401 - whatever a caller gave
    """An int for whatever is a whole number; UsageError for a float, a bool or anything else."""
    if not isinstance(value, (bool, np.bool_)):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise UsageError(f"{what} {value!r}: give a whole number")


def crop_numbers(
    crops: Sequence[Sequence[int]] | NDArray[np.integer] | None, n: int, num_crops: int
) -> NDArray[np.int64]:
    """Crop numbers (n, m) as given, or all M of every image; UsageError for one that the plan does not have."""
    if crops is None:
        return np.broadcast_to(np.arange(num_crops), (n, num_crops)).astype(np.int64)
    try:
        wanted = np.asarray(crops)
    except ValueError:
        wanted = np.empty(())  # rows of different lengths
    if wanted.ndim != 2 or len(wanted) != n:
        raise UsageError(
            f"crops has shape {wanted.shape}: give one row of crop numbers per image, ({n}, m)"
        )
    if wanted.size and wanted.dtype.kind not in "iu":
        raise UsageError(f"crops of {wanted.dtype} given: crop numbers are whole, from 0 on")
    for number in (wanted.min(), wanted.max()) if wanted.size else ():
        if not 0 <= number < num_crops:
            raise UsageError(f"crop {number} asked for: this plan has crops 0-{num_crops - 1}")
    return wanted.astype(np.int64)


def _numbers(store: Store, images: Images) -> NDArray[Any] | list[int]:
    if isinstance(images, np.ndarray) and images.ndim == 1 and images.dtype.kind in "iu":
        return images
    given: Any = images
    one = isinstance(given, (str, bytes)) or not isinstance(given, Iterable)
    if one or getattr(given, "ndim", 1) != 1:
        raise UsageError(f"images {images!r}: give a list of image rows or keys, also for one")
    given = list(given)
    keys = {image: check_key(image) for image in given if isinstance(image, str)}
    found = _rows_by_key(store, keys.values())
    for image, key in keys.items():
        if key not in found:
            raise UsageError(
                f"no image with key {image!r}: keys are paths relative to the image folder, "
                "as in store.images()['key']"
            )
    return [
        found[keys[image]] if isinstance(image, str) else whole_number(image, "image row")
        for image in given
    ]


def _rows_by_key(store: Store, keys: Collection[str]) -> dict[str, int]:
    """Rows of those keys that the store holds: a few are searched in the catalogue, many in all the keys at once."""
    row_of = {}
    if len(keys) > FEW_KEYS or "row_of_key" in store.__dict__:
        row_of = {key: store.row_of_key[key] for key in keys if key in store.row_of_key}
    missing = [
        key for key in keys if key not in row_of
    ]  # another process may have added them since
    return row_of | (store.catalogue.images.find(missing) if missing else {})


def _checked_rows(numbers: NDArray[Any] | list[int], num_rows: int) -> NDArray[np.int64]:
    # compared before they are made int64, into which not every number fits
    array = np.asarray(numbers)
    for number in (array.min(), array.max()) if len(numbers) else ():
        if not 0 <= number < num_rows:
            raise UsageError(f"image row {number}: this store has rows 0-{num_rows - 1}")
    return array.astype(np.int64)


def spans(
    rows: NDArray[np.int64], columns: NDArray[np.int64], images_per_shard: int
) -> Iterator[tuple[int, range, list[int]]]:
    """(image block, chunk columns, positions in `rows`): block after block, each chunk column in one span at most.

    `rows` (n,) are image rows in any order, also several times; `columns` (n, m) the chunk columns that each
    wants. An image is in one span, with all columns from its first to its last.

    >>> rows, columns = np.array([9, 0, 8, 1]), np.array([[0, 1], [2, 3], [2, 2], [0, 0]])
    >>> list(spans(rows, columns, 8))
    [(0, range(0, 1), [3]), (0, range(2, 4), [1]), (1, range(0, 3), [0, 2])]
    """
    if not columns.size:
        return
    blocks = rows // images_per_shard
    first, last = columns.min(axis=1), columns.max(axis=1)
    block, start, stop = -1, 0, 0
    chosen: list[int] = []
    for position in np.lexsort((first, blocks)).tolist():
        if chosen and (blocks[position] != block or first[position] > stop):
            yield block, range(start, stop), chosen
            chosen = []
        if not chosen:
            block, start, stop = int(blocks[position]), int(first[position]), 0
        stop = max(stop, int(last[position]) + 1)
        chosen.append(position)
    yield block, range(start, stop), chosen
