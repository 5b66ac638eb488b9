"""Sparse labels side by side: several labels of one crop over the union of their classes, nothing dense.

A label of K classes and `rest` says what any class has, listed or not. So two labels, K_1 and K_2 classes, can
both be written over S = K_1 + K_2 distinct classes: those that either lists, then classes that neither
does, to fill the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import SparseLabels, missing_id

FEW_PAIRS = 400
"""Up to so many pairs of classes comparing each with each is faster than sorting them: 25 at K = 5."""


def over_union(
    labels: Sequence[SparseLabels], num_classes: int
) -> tuple[NDArray[Any], list[NDArray[np.float32]]]:
    """Class ids (..., S), distinct, and per label its probabilities (..., S) of them; S is the sum of all K.

    S must not exceed C. A row of a label that is NaN gives NaN there, and lists no class.
    """
    kept = [label.class_ids.shape[-1] for label in labels]
    assert sum(kept) <= num_classes
    pairs = sum(k * sum(kept[:nth]) for nth, k in enumerate(kept))
    return (_by_pairs if pairs <= FEW_PAIRS else _by_sorting)(labels)


def _by_pairs(
    labels: Sequence[SparseLabels],
) -> tuple[NDArray[Any], list[NDArray[np.float32]]]:
    """Every class of a label against every class before it, one class of all crops at a time."""
    sentinel = missing_id(labels[0].class_ids.dtype)
    union: list[NDArray[Any]] = []
    found: list[list[NDArray[np.float32]]] = []
    for label in labels:
        own = [np.array(ids) for ids in np.moveaxis(_known(label, sentinel), -1, 0)]
        probs = [np.array(p) for p in np.moveaxis(label.probs, -1, 0)]
        before = [label.rest.copy() for _ in union]
        for ids, p in zip(own, probs, strict=True):
            twice = np.zeros(ids.shape, bool)
            for there, q in zip(union, before, strict=True):
                same = there == ids
                np.copyto(q, p, where=same)
                twice |= same
            # its place is free for a class that is on no list
            np.copyto(ids, sentinel, where=twice)
            np.copyto(p, label.rest, where=twice)
        for other, earlier in zip(labels, found, strict=False):
            earlier += [other.rest] * len(own)
        found.append(before + probs)
        union += own
    _fill_places(union, sentinel)
    return np.stack(union, axis=-1), [np.stack(probs, axis=-1) for probs in found]


def _fill_places(union: Sequence[NDArray[Any]], sentinel: int) -> None:
    """Give every place that holds the sentinel a class that its crop does not list, in place."""
    wanted = [ids == sentinel for ids in union]
    if not any(places.any() for places in wanted):
        return
    # among the classes 0 to S - 1 at least as many are free as places are
    unfilled = [places.copy() for places in wanted]
    for class_id in range(len(union)):
        free = np.ones(union[0].shape, bool)
        for ids, places in zip(union, wanted, strict=True):
            free &= places | (ids != class_id)
        for ids, places in zip(union, unfilled, strict=True):
            take = places & free
            np.copyto(ids, class_id, where=take)
            places &= ~take
            free &= ~take


def _by_sorting(
    labels: Sequence[SparseLabels],
) -> tuple[NDArray[Any], list[NDArray[np.float32]]]:
    dtype = labels[0].class_ids.dtype
    sentinel = missing_id(dtype)
    ids = np.concatenate([_known(label, sentinel) for label in labels], axis=-1)
    width = ids.shape[-1]
    order = np.argsort(ids, axis=-1, kind="stable")
    ranked = np.take_along_axis(ids, order, -1)
    new = np.ones(ranked.shape, bool)
    new[..., 1:] = ranked[..., 1:] != ranked[..., :-1]
    new &= ranked != sentinel
    # place of every sorted entry among the distinct classes; those of missing labels fall off the end
    place = np.where(ranked == sentinel, width, np.cumsum(new, axis=-1) - 1)
    places = np.empty_like(place)
    np.put_along_axis(places, order, place, -1)
    union = np.empty((*ids.shape[:-1], width + 1), dtype)
    np.put_along_axis(union, place, ranked, -1)
    union = filled(union[..., :width], new.sum(axis=-1))
    found, first = [], 0
    for label in labels:
        kept = label.class_ids.shape[-1]
        probs = np.empty((*ids.shape[:-1], width + 1), np.float32)
        probs[...] = label.rest[..., None]
        np.put_along_axis(probs, places[..., first : first + kept], label.probs, -1)
        found.append(probs[..., :width])
        first += kept
    return union, found


def widen(labels: SparseLabels, width: int, num_classes: int) -> SparseLabels:
    """The same labels with `width` classes listed: further ones are such as the label does not list, with `rest`.

    `width` is at least K and at most C. Where a row is missing, its new ids are the sentinel.
    """
    kept = labels.class_ids.shape[-1]
    if width == kept:
        return labels
    dtype = labels.class_ids.dtype
    sentinel = missing_id(dtype)
    shape = (*labels.class_ids.shape[:-1], width)
    ids = np.empty(shape, dtype)
    ids[..., :kept] = labels.class_ids
    missing = labels.class_ids[..., 0] == sentinel
    ids = filled(ids, np.full(shape[:-1], kept))
    ids[missing] = sentinel
    probs = np.empty(shape, np.float32)
    probs[..., :kept], probs[..., kept:] = labels.probs, labels.rest[..., None]
    return SparseLabels(class_ids=ids, probs=probs, rest=labels.rest)


def _known(label: SparseLabels, sentinel: int) -> NDArray[Any]:
    return np.where(np.isnan(label.rest)[..., None], sentinel, label.class_ids)


def filled(ids: NDArray[Any], listed: NDArray[np.integer[Any]]) -> NDArray[Any]:
    """ids (..., S) whose first `listed` (...) entries are distinct classes, the others set to further classes."""
    width = ids.shape[-1]
    at = np.arange(width)
    real = at < listed[..., None]
    # among the classes 0 to S - 1 at least S - listed are free
    taken = np.zeros((*ids.shape[:-1], width + 1), bool)
    low = np.where(real & (ids < width), ids, width).astype(np.int64)
    np.put_along_axis(taken, low, True, -1)
    free = np.argsort(taken[..., :width], axis=-1, kind="stable")
    nth = np.maximum(at - listed[..., None], 0)
    return np.where(real, ids, np.take_along_axis(free, nth, -1).astype(ids.dtype))
