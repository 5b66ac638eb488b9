"""Recovered labels at another temperature, and as dense distributions (FKD 3.3 "recover", Eq. 5)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import SparseLabels
from labelstore.codecs.topk import missing_id
from labelstore.errors import UsageError


def check_temperature(temperature: float) -> float:
    """T, if it is a positive finite number; UsageError otherwise."""
    if not (np.isfinite(temperature) and temperature > 0):
        raise UsageError(
            f"temperature {temperature}: a positive number is needed, 1 keeps labels as stored"
        )
    return temperature


def temper(labels: SparseLabels, num_classes: int, temperature: float) -> SparseLabels:
    """The label at temperature T: every probability to the power 1/T, then scaled to sum to one.

    With softmax probabilities p of logits z, p^(1/T) normalised is softmax(z / T), so nothing but the
    spread inside the tail is lost by tempering after the fact.
    """
    if check_temperature(temperature) == 1:
        return labels
    power = np.float32(1 / temperature)
    # a kept class is never below a class that is not kept; a float16 that underflowed to 0 would be
    probs = np.maximum(labels.probs, labels.rest[..., None])
    largest = probs[
        ..., :1
    ].copy()  # relative to the largest, so that a small T cannot underflow every class
    probs /= largest
    np.power(probs, power, out=probs)
    rest = np.power(labels.rest / largest[..., 0], power)
    total = probs.sum(-1) + np.float32(num_classes - probs.shape[-1]) * rest
    probs /= total[..., None]
    rest /= total
    return SparseLabels(class_ids=labels.class_ids, probs=probs, rest=rest)


def densify(labels: SparseLabels, num_classes: int) -> NDArray[np.float32]:
    """Sparse labels (..., K) -> dense labels (..., C); missing crops become rows of NaN."""
    ids: NDArray[Any] = labels.class_ids
    missing = ids[..., 0] == missing_id(ids.dtype)
    dense = np.empty((*ids.shape[:-1], num_classes), np.float32)
    dense[...] = labels.rest[..., None]
    np.put_along_axis(dense, np.where(missing[..., None], 0, ids).astype(np.intp), labels.probs, -1)
    dense[missing] = np.nan
    return dense
