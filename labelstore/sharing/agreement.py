"""Images that two stores have labels of: are they the same labels? The first store's are kept, so they must be.

Two machines round differently, so labels agree where they differ by no more than `audit` allows. A class that only
one of them keeps is no difference if it is as improbable as the other's last: that is a tie at rank K. What `hard`
keeps says nothing of how close two classes were, so that one crop in a hundred may have another class.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.catalogue.records import LabelSetRow
from labelstore.codecs.codec_traits import tolerance_of
from labelstore.errors import ConflictError
from labelstore.sharing.union import Union, available
from labelstore.store import LabelSet

SAMPLE = 1000
"""Images of an overlap that are compared, all their crops."""
BLOCKS = 64
"""Image blocks that they are drawn from: each is decoded."""
HARD_SHARE = 0.01


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Crops of one label set that two stores have."""

    compared: int = 0
    largest: float = 0.0


def agreement_of(union: Union, row: LabelSetRow, *, seed: int = 0) -> Agreement:
    """Compare the overlaps of one label set. ConflictError names an image and a crop that differ."""
    label_set = row.name
    there = np.stack([has.all(axis=1) for has in available(union, f"labels/{label_set}")])
    first = there.argmax(axis=0)
    agreement = Agreement()
    for second in range(1, len(union.stores)):
        both = np.flatnonzero(there[second] & (first < second))
        for number in np.unique(first[both]).tolist():
            one = union.stores[number].label_set(label_set)
            other = union.stores[second].label_set(label_set)
            chosen = _sample(one, union.rows[number], both[first[both] == number], seed)
            part = _compare(union, one, other, number, second, chosen)
            agreement = Agreement(
                compared=agreement.compared + part.compared,
                largest=max(agreement.largest, part.largest),
            )
    return agreement


def _sample(
    labels: LabelSet, rows: NDArray[np.int64], images: NDArray[np.int64], seed: int
) -> NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    blocks = rows[images] // labels.layout.images_per_shard
    numbers = np.unique(blocks)
    if len(numbers) > BLOCKS:
        numbers = rng.choice(numbers, BLOCKS, replace=False)
    images = images[np.isin(blocks, numbers)]
    if len(images) > SAMPLE:
        images = np.sort(rng.choice(images, SAMPLE, replace=False))
    return images


def _compare(
    union: Union, one: LabelSet, other: LabelSet, first: int, second: int, images: NDArray[np.int64]
) -> Agreement:
    tolerance = tolerance_of(one.codec, one.row.facts)
    hard, strange, compared, largest = one.codec.name == "hard", 0, 0, 0.0
    for image, columns, difference in _differences(union, one, other, first, second, images):
        compared += difference.size
        largest = max(largest, float(difference.max()))
        strange += int(np.count_nonzero(difference > tolerance)) if hard else 0
        if not hard and not (difference <= tolerance).all():
            crop = columns.start * one.plan.crops_per_chunk + int(np.argmax(difference))
            raise _refused(union, one, first, second, image, crop, float(difference.max()))
    if strange > HARD_SHARE * compared:
        raise ConflictError(
            f"label set {one.name}: {strange} of {compared} crops that {_names(union, first, second)} share have "
            f"another class, {HARD_SHARE:.0%} may: label one of them again, or merge stores that share no images"
        )
    return Agreement(compared=compared, largest=largest)


def _refused(
    union: Union,
    labels: LabelSet,
    first: int,
    second: int,
    image: int,
    crop: int,
    difference: float,
) -> ConflictError:
    return ConflictError(
        f"label set {labels.name}: labels of {union.keys[image]!r}, crop {crop}, differ by {difference:.3g} between "
        f"{_names(union, first, second)}; ask the teacher with `labelstore.audit` which are right"
    )


def _names(union: Union, first: int, second: int) -> str:
    return f"{union.stores[first].location} and {union.stores[second].location}"


def _differences(
    union: Union, one: LabelSet, other: LabelSet, first: int, second: int, images: NDArray[np.int64]
) -> Iterator[tuple[int, range, NDArray[np.float32]]]:
    """(image, chunk columns, largest difference of each of these crops' probabilities); infinite for other crops."""
    total, width = one.layout.num_columns, one.layout.columns_per_shard
    pieces = [range(start, start + width) for start in range(0, total, width)]
    sides = [
        (lru_cache(2)(partial(_read, labels)), labels, store)
        for labels, store in ((one, first), (other, second))
    ]
    for columns in [range(total)] if one.codec.takes == "map" else pieces:
        for image in images.tolist():
            differences = []
            for read, labels, store in sides:
                block, at = divmod(int(union.rows[store, image]), labels.layout.images_per_shard)
                differences.append([part[at] for part in read(block, columns)])
            *a, box_a, flip_a = differences[0]
            *b, box_b, flip_b = differences[1]
            difference = sparse_difference(*a, *b) if len(a) > 1 else np.abs(a[0] - b[0]).max(-1)
            # NaN where one has no label at all
            difference = np.where(np.isfinite(difference), difference, np.inf)
            if not (np.array_equal(box_a, box_b) and np.array_equal(flip_a, flip_b)):
                difference = np.full_like(difference, np.inf)
            yield image, columns, difference.astype(np.float32)


def _read(labels: LabelSet, block: int, columns: range) -> tuple[NDArray[Any], ...]:
    """A block's labels, dense or as the arguments of `sparse_difference`, then its boxes and flips."""
    crops = labels.crops(block, columns)
    kept = labels.codec.kept(labels.num_classes)
    if labels.codec.takes == "map":
        return (*_cells(labels, block), *crops)
    if kept is None:
        return (labels.dense(block, columns), *crops)
    sparse = labels.sparse(block, columns)
    most = sparse.probs.min(axis=-1)
    if labels.codec.name != "mr":  # which does not keep how much the others had
        most = np.minimum(most, sparse.rest * (labels.num_classes - kept))
    return (sparse.class_ids, sparse.probs, most, *crops)


def _cells(labels: LabelSet, block: int) -> tuple[NDArray[Any], ...]:
    """Labels (n, H * W, K) of a crop that lies in one cell of a label map."""
    (part,) = labels.store.group(f"labels/{labels.name}").parts(block, None)
    ids, logits = part["map_class"], part["map_logit"].astype(np.float32)
    shape = (len(ids), prod(ids.shape[1:3]), ids.shape[3])
    largest = np.maximum(logits.max(axis=-1, keepdims=True), 0)
    probs = np.exp(logits - largest)
    total = probs.sum(axis=-1, keepdims=True) + (labels.num_classes - shape[-1]) * np.exp(-largest)
    probs = (probs / total).reshape(shape)
    return ids.reshape(shape), probs, probs.min(axis=-1)


def sparse_difference(
    ids: NDArray[Any],
    probs: NDArray[np.float32],
    most: NDArray[np.float32],
    other_ids: NDArray[Any],
    other_probs: NDArray[np.float32],
    other_most: NDArray[np.float32],
) -> NDArray[np.float32]:
    """(m,) largest difference of labels (m, K); `most` (m,) is what a class that is not kept has at most.

    Of a class that only one keeps it is what is above the other's `most`.
    """
    largest = np.zeros(probs.shape[:-1], np.float32)
    for a, p, b, q, bound in (
        (ids, probs, other_ids, other_probs, other_most),
        (other_ids, other_probs, ids, probs, most),
    ):
        for rank in range(a.shape[-1]):
            same = b == a[..., rank, None]
            there = np.where(same, q, 0).sum(axis=-1)
            gap = np.where(
                same.any(axis=-1),
                np.abs(p[..., rank] - there),
                np.maximum(p[..., rank] - bound, 0),
            )
            largest = np.maximum(largest, gap)
    return largest
