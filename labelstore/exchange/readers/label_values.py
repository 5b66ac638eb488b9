"""Numbers of foreign files made into labels: class ids out of floats, probabilities and outputs within their ranges.

Other projects keep class ids in float arrays. float32 holds every id; float16 holds integers up to 2,048 and rounds
those above to multiples of 2, 4, 8, ..., ties to even: of C classes several may then be written as one number. Such
an id is taken where only one class can have become it (2,050 is only ever 2,050), and the file refused where not.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs import id_dtype
from labelstore.codecs.base import TopK
from labelstore.untrusted.refusal import Refused

SUM_TOLERANCE = {2: 5e-3, 4: 1e-3, 8: 1e-3}
"""How far the sum of kept probabilities may be above one, by the bytes of a number."""

FEW = 8
"""Kept classes up to which every pair is compared."""

_UNKNOWN, _AMBIGUOUS = -1, -2


def class_ids(values: NDArray[Any], num_classes: int) -> NDArray[Any]:
    """Class ids (...) of C classes as unsigned integers; Refused for what is no class, or might be several."""
    if values.dtype == np.float16:
        return _from_half(values, num_classes)
    if values.dtype.kind not in "iuf":
        raise Refused(f"has class ids of dtype {values.dtype}")
    with np.errstate(invalid="ignore"):
        ids = values.astype(id_dtype(num_classes))
    # what is no whole number from 0 up does not come back equal
    if values.size and not ((ids == values).all() and ids.max() < num_classes):
        _refuse_ids(values, num_classes)
    return ids


def _refuse_ids(values: NDArray[Any], num_classes: int) -> NoReturn:
    low, high = values.min(), values.max()
    if not (low >= 0 and high < num_classes):
        worst = low if not low >= 0 else high
        raise Refused(
            f"has class {worst:.6g}, and `num_classes` is {num_classes}: classes are 0 to {num_classes - 1}"
        )
    raise Refused("has class ids that are no whole numbers")


def _from_half(values: NDArray[Any], num_classes: int) -> NDArray[Any]:
    classes = _half_table(num_classes)[values.view(np.uint16)]
    if (classes < 0).any():
        bad = float(values[classes < 0].ravel()[0])
        if (classes == _AMBIGUOUS).any():
            bad = float(values[classes == _AMBIGUOUS].ravel()[0])
            meant = np.flatnonzero(
                np.arange(num_classes).astype(np.float32).astype(np.float16) == bad
            )
            raise Refused(
                f"has class {bad:.0f} in float16, which may be any of {meant[0]} to {meant[-1]}: float16 keeps "
                "class ids up to 2048 apart; get the labels in float32"
            )
        raise Refused(
            f"has class {bad:.6g}, and `num_classes` is {num_classes}: classes are 0 to {num_classes - 1}"
        )
    return classes.astype(id_dtype(num_classes))


@lru_cache(maxsize=4)
def _half_table(num_classes: int) -> NDArray[np.int64]:
    """Class of every float16, by its bits."""
    with np.errstate(over="ignore"):
        written = np.arange(num_classes).astype(np.float32).astype(np.float16)
    bits, first, counts = np.unique(written.view(np.uint16), return_index=True, return_counts=True)
    table = np.full(1 << 16, _UNKNOWN, np.int64)
    table[bits] = np.where(counts == 1, first, _AMBIGUOUS)
    return table


def kept_probabilities(ids: NDArray[Any], values: NDArray[Any]) -> TopK:
    """Class ids and probabilities (m, K) of a file, sorted descending, the tail being what they leave of one.

    Refused for numbers that are no probabilities, sums above one, and a class that a crop has twice.
    """
    if values.size == 0:
        raise Refused("has labels of no crop")
    probs = values.astype(np.float32, copy=False)
    # kept class by kept class: along a short last axis everything takes five times as long
    ranks = probs.T.astype(np.float64, order="C")
    total = ranks.sum(axis=0)
    least, most = ranks.min(), total.max()
    tolerance = SUM_TOLERANCE[values.dtype.itemsize]
    if not (least >= 0 and most <= 1 + tolerance):
        highest = ranks.max()
        if not (least >= 0 and highest <= 1 + tolerance):
            raise Refused(f"has probabilities from {least:.4g} to {highest:.4g}, not from 0 to 1")
        raise Refused(f"has probabilities of a crop that sum to {most:.4g}")
    if not total.min() > 0:
        raise Refused("has a crop whose probabilities are all zero")
    if len(ranks) > 1:
        if (ranks[1:] > ranks[:-1]).any():
            order = np.argsort(-probs, axis=-1, kind="stable")
            probs = np.take_along_axis(probs, order, -1)
            ids = np.take_along_axis(ids, order, -1)
        refuse_twice(ids)
    return TopK(class_ids=ids, probs=probs, tail=np.maximum(1 - total, 0).astype(np.float32))


def tail_mass(values: NDArray[Any], probs: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mass (m,) of the classes that are not kept, beside kept probabilities (m, K).

    Refused for numbers that are no mass, or do not make one together with what is kept.
    """
    if values.shape != probs.shape[:1]:
        raise Refused(f"has tails of shape {values.shape} for {len(probs)} crops")
    tail = finite(values, "tails")
    tolerance = SUM_TOLERANCE[2]  # the probabilities may have been float16
    total = probs.sum(-1, dtype=np.float64) + tail
    if not (tail.min() >= 0 and np.abs(total - 1).max() <= tolerance):
        worst = total[np.abs(total - 1).argmax()]
        raise Refused(
            f"has tails from {tail.min():.4g} to {tail.max():.4g}, with which a crop's label sums to {worst:.4g}, not 1"
        )
    return tail


def refuse_twice(ids: NDArray[Any]) -> None:
    """Refused where a class is listed twice along the last axis."""
    kept = ids.shape[-1]
    if kept <= FEW:
        columns = np.ascontiguousarray(np.moveaxis(ids, -1, 0))
        twice = any((columns[rank + 1 :] == columns[rank]).any() for rank in range(kept - 1))
    else:
        ranked = np.sort(ids, axis=-1)
        twice = bool((ranked[..., 1:] == ranked[..., :-1]).any())
    if twice:
        raise Refused("lists a class twice for one crop")


def whole_probabilities(values: NDArray[Any]) -> NDArray[np.float32]:
    """Probabilities (m, C) of all classes as float32; Refused unless they are and sum to one (within 1 %)."""
    probs = finite(values, "probabilities")
    if not (probs.min() >= 0 and probs.max() <= 1 + 1e-3):
        raise Refused(
            f"has probabilities from {probs.min():.4g} to {probs.max():.4g}, not from 0 to 1"
        )
    total = probs.sum(-1, dtype=np.float64)
    if not (total.min() > 0.99 and total.max() < 1.01):
        worst = total[np.abs(total - 1).argmax()]
        raise Refused(f"has probabilities of a crop that sum to {worst:.4g}, not to 1")
    return probs


def finite(values: NDArray[Any], what: str) -> NDArray[np.float32]:
    """Numbers as float32; Refused for NaN, infinities, no numbers at all, and anything but floats."""
    if values.dtype.kind != "f" or values.size == 0:
        raise Refused(f"has {what} of dtype {values.dtype} and shape {values.shape}")
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise Refused(f"has {what} that are NaN or infinite")
    return numbers


def truths(values: NDArray[Any], what: str) -> NDArray[np.bool_]:
    """Flags as bool; Refused for numbers other than 0 and 1."""
    if values.dtype == np.bool_:
        return values
    if values.dtype.kind not in "iuf" or not np.isin(values, (0, 1)).all():
        raise Refused(f"has {what} that are no flags")
    return values.astype(np.bool_)
