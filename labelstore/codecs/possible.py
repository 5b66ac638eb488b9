"""Labels that a softmax can have: mass one, and no class beyond the top-K likelier than the K-th.

Labels arrive that break this by rounding: one whose probabilities were float16 sums to one only to 2^-11, and may keep
classes at exactly zero while a remainder is left for the others. Codecs promise their precision for the nearest label
that can be, which `possible` gives.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.rows import row_sum

Float = NDArray[np.float32]

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
