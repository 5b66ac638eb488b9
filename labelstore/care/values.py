"""Do decoded values mean what they should: labels that sum to one, in order; boxes inside images; known codes.

The bytes are known to be the committed ones by then; this finds what was wrong when it was written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.catalogue.records import ShardRow
from labelstore.codecs import codec_from_record
from labelstore.codecs.base import SparseLabels
from labelstore.errors import DamagedShard
from labelstore.store import Store
from labelstore.store.group import Group

SUM_TOLERANCE = 1e-4
"""Recovered labels sum to one by construction, up to float32."""
MAX_REGION = 3
MISSING = 255


def value_problems(store: Store, group: Group, row: ShardRow) -> list[str]:
    """Check the decoded values of one shard; one line for each law that they violate."""
    kind, _, name = group.name.partition("/")
    check = {"labels": _labels, "crops": _crops, "masks": _regions}[kind]
    problems: dict[str, str] = {}
    layout = group.layout
    first = row.crop_shard * layout.columns_per_shard
    # a few chunk columns at a time: a whole shard of dense labels may be large
    for column in range(first, first + layout.columns_per_shard):
        columns = range(column, column + 1)
        try:
            for law, crops in check(store, group, name, row.block, columns):
                if crops.any() and law not in problems:
                    image, crop = (int(places[0]) for places in np.nonzero(crops))
                    problems[law] = (
                        f"{law} in {int(crops.sum())} crops, first in crop "
                        f"{column * layout.crops_per_chunk + crop} of image {layout.rows(row.block)[image]}"
                    )
        except DamagedShard as error:
            # the message names the file, images and command: only what was found is news here
            return [str(error).partition(": ")[2].partition(";")[0] or str(error)]
    return list(problems.values())


Laws = Iterator[tuple[str, NDArray[np.bool_]]]
"""(law that is broken, the crops (n, m) that break it)."""


def _labels(store: Store, group: Group, name: str, block: int, columns: range) -> Laws:
    labels = store.label_set_row(name)
    codec = codec_from_record(labels.codec)
    (part,) = group.parts(block, columns)
    bad = _bad_rows(store, group, block)
    if codec.takes == "map":
        yield from _maps(part, labels.num_classes, bad)
        return
    if codec.kept(labels.num_classes) is None:
        dense = codec.recover(part, labels.num_classes)
        yield from _probabilities(dense, dense.sum(axis=-1), bad)
        return
    sparse = codec.decode(part, labels.num_classes)
    total = sparse.probs.sum(axis=-1) + sparse.rest * (labels.num_classes - sparse.probs.shape[-1])
    yield from _probabilities(sparse.probs, total, bad)
    yield from _kept_classes(sparse, labels.num_classes, bad, rounded="probability_code" in part)


def _maps(part: dict[str, NDArray[Any]], num_classes: int, bad: NDArray[np.bool_]) -> Laws:
    """Laws of label maps, whose one crop is the whole image."""
    ids = part["map_class"].reshape(len(bad), -1, part["map_class"].shape[-1])
    logits = part["map_logit"].reshape(ids.shape).astype(np.float32)

    def anywhere(cells: NDArray[Any]) -> NDArray[np.bool_]:
        """(n, cells, K) -> (n, 1)."""
        in_image = np.asarray(cells.reshape(len(cells), -1).any(axis=1))
        return in_image[:, None]

    missing = anywhere(np.isnan(logits))
    yield "labels are missing", missing & ~bad
    yield "labels of images that were left out are there", ~missing & bad
    good = ~missing & ~bad
    yield "logits are infinite", anywhere(np.isinf(logits))
    yield f"class ids are not below {num_classes}", anywhere(ids >= num_classes) & good
    ordered = np.sort(ids, axis=-1)
    yield "a class is there twice in a cell", anywhere(ordered[..., 1:] == ordered[..., :-1]) & good
    with np.errstate(invalid="ignore"):
        rising = anywhere(np.diff(logits, axis=-1) > 0)
    yield "logits are not in descending order", rising & good


def _probabilities(
    probs: NDArray[np.float32], total: NDArray[np.float32], bad: NDArray[np.bool_]
) -> Laws:
    missing = np.isnan(total)
    yield "labels are missing", missing & ~bad
    yield "labels of images that were left out are there", ~missing & bad
    with np.errstate(invalid="ignore"):
        outside = (probs < 0) | (probs > 1 + SUM_TOLERANCE)
        yield "probabilities are below 0 or above 1", np.asarray(outside.any(axis=-1))
        yield "labels do not sum to one", np.greater(np.abs(total - 1), SUM_TOLERANCE)


def _kept_classes(
    labels: SparseLabels, num_classes: int, bad: NDArray[np.bool_], *, rounded: bool
) -> Laws:
    """`rounded`: in 8 bits equally probable classes may change places, but none passes the first."""
    good = ~bad & ~np.isnan(labels.rest)
    ids = labels.class_ids
    yield f"class ids are not below {num_classes}", (ids >= num_classes).any(-1) & good
    ordered = np.sort(ids, axis=-1)
    yield "a class is there twice", (ordered[..., 1:] == ordered[..., :-1]).any(-1) & good
    with np.errstate(invalid="ignore"):
        before = labels.probs[..., :1] if rounded else labels.probs[..., :-1]
        rising = labels.probs[..., 1:] > before
        yield "probabilities are not in descending order", rising.any(-1) & good
        yield "the remainder is negative", (labels.rest < 0) & good


def _crops(store: Store, group: Group, _: str, block: int, columns: range) -> Laws:
    boxes = group.read(block, columns, "box").astype(np.int64)
    flips = group.read(block, columns, "flip")
    bad = _bad_rows(store, group, block)
    rows = group.layout.rows(block)
    known = store.image_columns
    sizes = [
        known[name][rows.start : rows.stop].astype(np.int64)[:, None]
        for name in ("height", "width")
    ]
    top, left, height, width = (boxes[..., edge] for edge in range(4))
    inside = (height >= 1) & (width >= 1) & (top + height <= sizes[0]) & (left + width <= sizes[1])
    yield "boxes are outside their images", ~inside & ~bad
    yield "flips are neither 0 nor 1", (flips > 1) & ~bad


def _regions(store: Store, group: Group, _: str, block: int, columns: range) -> Laws:
    codes = group.read(block, columns, "region")
    yield "region codes are unknown", (codes > MAX_REGION) & (codes != MISSING)
    yield "region codes are missing", (codes == MISSING) & ~_bad_rows(store, group, block)


def _bad_rows(store: Store, group: Group, block: int) -> NDArray[np.bool_]:
    """(n, 1) True for the images of a block that were left out."""
    rows = group.layout.rows(block)
    return store.bad[rows.start : rows.stop, None]
