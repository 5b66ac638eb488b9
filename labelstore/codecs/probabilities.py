"""Arithmetic on rows of probabilities: fast sums, the nearest label that a softmax can have, float16 on its side.

Sums and scalings run over a short last axis, where NumPy's own take five times as long at K = 5.

Labels arrive that no softmax gives, by rounding: one whose probabilities were float16 sums to one only to 2^-11, and
may keep classes at exactly zero while a remainder is left for the others. Codecs promise their precision for the
nearest label that can be, which `possible` gives.

FerKD's bins (Table 1) and thresholds (Eq. 4) are multiples of 0.05, and 0.8 itself is 0.7998 in float16: rounded to
the nearest, a crop of exactly 0.8 would fall into the bin below. `keep_sides` keeps each label on its side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

_SHORT = 16


def row_sum(probs: Float) -> Float:
    """(..., K) -> (...) sums, the same however rows are grouped and laid out."""
    if probs.shape[-1] > _SHORT:
        sums: Float = np.ascontiguousarray(probs).sum(-1)
        return sums
    total: Float = probs[..., 0].copy()
    for rank in range(1, probs.shape[-1]):
        total += probs[..., rank]
    return total


def scale_rows(probs: Float, factor: Float) -> None:
    """probs (..., K) *= factor (...), in place."""
    k = probs.shape[-1]
    if k > _SHORT:
        probs *= factor[..., None]
        return
    for rank in range(k):
        probs[..., rank] *= factor


def float32_of(half: NDArray[np.float16]) -> Float:
    """float16 -> float32 for values >= 0, exact, four times as fast as astype; NaN becomes 98,304 instead.

    Moving the bits leaves the exponent 112 too small, which one multiplication puts right, subnormal
    values included. Sums then tell rows of probabilities from rows of NaN: see `is_missing`.
    """
    probs = np.empty(half.shape, np.float32)
    bits = probs.view(np.uint32)
    np.copyto(bits, half.view(np.uint16))
    bits <<= 13
    probs *= np.float32(2.0**112)
    return probs


def is_missing(total: Float) -> NDArray[np.bool_]:
    """Whether a sum of probabilities was of a row of NaN that `float32_of` read."""
    return total > 2


CLOSE = np.float32(1e-6)
"""A float32 sum this near to one is one: such a label stays as it is, to the last bit."""


def possible(probs: Float, tail: Float, outcomes: int) -> tuple[Float, Float]:
    """Probabilities (..., K), sorted descending, and tail (...): the nearest that a softmax of `outcomes` classes has.

    The mass becomes one. Where each class of the tail would be likelier than the K-th, the smallest kept classes
    and the tail share their mass evenly; likelier classes keep theirs. Rows of NaN stay.

    >>> p, tail = possible(np.array([[0.5, 0.25, 0.0]], "f4"), np.array([0.25], "f4"), 5)
    >>> p.astype(float).round(3).tolist(), tail.astype(float).round(3).tolist()
    ([[0.5, 0.25, 0.083]], [0.167])
    """
    total = row_sum(probs) + tail
    off = np.abs(total - 1) > CLOSE
    others = outcomes - probs.shape[-1]
    if others:
        off |= tail / np.float32(others) > probs[..., -1]
    off &= total > 0
    if not off.any():
        return probs, tail
    probs, tail = probs.astype(np.float32), tail.astype(np.float32)
    probs[off], tail[off] = _mended(
        probs[off].astype(np.float64), tail[off].astype(np.float64), others
    )
    return probs, tail


def _mended(
    probs: NDArray[np.float64], tail: NDArray[np.float64], others: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    total = probs.sum(-1) + tail
    probs = probs / total[:, None]
    tail = tail / total
    if not others:
        return probs, tail
    # mass and mean of the tail with the classes after the j-th, for j = K, K - 1, ..., 0
    mass = np.cumsum(np.concatenate([tail[:, None], probs[:, ::-1]], axis=1), axis=1)
    mean = mass / (others + np.arange(mass.shape[1]))
    above = np.concatenate([probs[:, ::-1] >= mean[:, :-1], np.ones((len(probs), 1), bool)], axis=1)
    level = np.take_along_axis(mean, above.argmax(axis=1)[:, None], 1)
    return np.maximum(probs, level), np.minimum(tail, level[:, 0] * others)


Rows = NDArray[np.intp]

TWENTIETHS = (np.arange(1, 20) / 20).astype(np.float32)
NUDGES = 64
"""Rounds at most: a step of float16 moves the recovered probability by a twentieth of a step or more, and about one
step can be missing."""


def keep_sides(
    stored: NDArray[Any], largest: Float, recovered: Callable[[Rows], Float]
) -> NDArray[Any]:
    """Stored float16 (r, K) whose labels' largest probability is where `largest` (r,), the teacher's, is.

    `stored` is changed in place. `recovered(rows)` gives the largest probability of these rows as they are read back.
    Exactly a multiple counts as above it. NaN rows stay.
    """
    side = np.searchsorted(TWENTIETHS, largest, side="right")
    rows = np.flatnonzero(~np.isnan(largest))
    for _ in range(NUDGES):
        found = np.searchsorted(TWENTIETHS, recovered(rows), side="right")
        wrong = found != side[rows]
        rows, up = rows[wrong], (found < side[rows])[wrong]
        if not rows.size:
            break
        part = stored[rows]
        at = part.argmax(axis=1)[:, None]
        first = np.take_along_axis(part, at, 1)
        first = np.nextafter(first, np.where(up[:, None], 1, 0).astype(stored.dtype))
        np.put_along_axis(part, at, first, 1)
        stored[rows] = np.minimum(part, first)
    return stored
