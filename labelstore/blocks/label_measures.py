"""Figures of recovered labels: entropy, the probability of one class, its rank."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import SparseLabels

Float = NDArray[np.float32]

TINY = np.float32(1e-38)
"""What stands for zero under a logarithm: x log x is zero there all the same."""


def sparse_entropy(labels: SparseLabels, num_classes: int) -> Float:
    """-sum p log p in nats of labels (..., K) with C - K equal others: (...), NaN where missing."""
    others = np.float32(num_classes - labels.probs.shape[-1])
    entropy = _plogp(labels.rest)
    entropy *= others
    for rank in range(labels.probs.shape[-1]):
        entropy += _plogp(labels.probs[..., rank])
    np.negative(entropy, out=entropy)
    # rounding must not make a one-hot label's entropy less than nothing
    return np.maximum(entropy, np.float32(0), out=entropy)


def dense_entropy(probs: Float) -> Float:
    """-sum p log p in nats of dense labels (..., C): (...), NaN where missing."""
    entropy: Float = -_plogp(probs).sum(axis=-1)
    return np.maximum(entropy, np.float32(0), out=entropy)


def ranked_above(probs: Float, class_id: NDArray[Any]) -> NDArray[np.int64]:
    """How many classes of dense labels (n, m, C) come before a class per image (n, 1): (n, m)."""
    own = np.take_along_axis(probs, class_id[..., None], axis=-1)
    above: NDArray[np.int64] = (probs > own).sum(axis=-1)
    return above


def _plogp(probs: Float) -> Float:
    logs = np.log(np.maximum(probs, TINY))
    logs *= probs
    return logs
