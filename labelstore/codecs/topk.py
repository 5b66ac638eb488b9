"""Teacher probabilities -> the K largest of them with their class ids, and the mass beyond (FKD 3.5, "Top-K")."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import TopK, id_dtype, missing_id
from labelstore.errors import UsageError


def check_kept(k: int, num_classes: int) -> int:
    """K, if C classes have that many; UsageError otherwise."""
    if k > num_classes:
        raise UsageError(
            f"K={k} of C={num_classes} classes: K is 1 to {num_classes}, choose a smaller `k`"
        )
    return k


def top_k(probs: NDArray[np.float32], k: int) -> TopK:
    """Dense probabilities (..., C) float32 -> TopK (..., K).

    Ties go to the lower class id, as FKD Eq. 3's argmax does. The tail is the sum of the C - K others
    themselves, not one minus the kept sum, which would lose it for a sharp teacher. NaN rows are
    missing crops. UsageError where K > C.

    >>> kept = top_k(np.array([0.25, 0.5, 0.25], "f4"), 2)
    >>> kept.class_ids.tolist(), kept.probs.tolist(), float(kept.tail)
    ([1, 0], [0.5, 0.25], 0.25)
    """
    num_classes = probs.shape[-1]
    check_kept(k, num_classes)
    ids = _largest(probs, k)
    kept = np.take_along_axis(probs, ids, -1)
    if k == num_classes:
        tail = np.zeros(probs.shape[:-1], np.float32)
    else:
        others = probs.copy()
        np.put_along_axis(others, ids, 0, -1)
        tail = others.sum(-1, dtype=np.float32)
    dtype = id_dtype(num_classes)
    missing = np.isnan(probs).any(-1)
    class_ids = ids.astype(dtype)
    class_ids[missing] = missing_id(dtype)
    kept[missing] = np.nan
    return TopK(class_ids=class_ids, probs=kept, tail=np.where(missing, np.float32(np.nan), tail))


def first_classes(labels: TopK, k: int) -> TopK:
    """The first K classes of labels (..., W), W >= K; what the others have joins the tail."""
    if labels.class_ids.shape[-1] == k:
        return labels
    return TopK(
        class_ids=np.ascontiguousarray(labels.class_ids[..., :k]),
        probs=np.ascontiguousarray(labels.probs[..., :k]),
        tail=(labels.tail + labels.probs[..., k:].sum(-1, dtype=np.float64)).astype(np.float32),
    )


def _largest(probs: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Indices (..., K) of the K largest, descending, the lower index first among equals."""
    num_classes = probs.shape[-1]
    if k > num_classes // 4:
        return np.argsort(-probs, axis=-1, kind="stable")[..., :k]
    # argpartition breaks ties as it likes: taken only where the K-th value is not shared with an outsider
    candidates = np.sort(np.argpartition(-probs, k, axis=-1)[..., : k + 1], -1)
    values = np.take_along_axis(probs, candidates, -1)
    order = np.argsort(-values, axis=-1, kind="stable")
    ids = np.take_along_axis(candidates, order[..., :k], -1)
    last_two = np.take_along_axis(values, order[..., k - 1 :], -1)
    tied = last_two[..., 0] == last_two[..., 1]
    if tied.any():
        ids[tied] = np.argsort(-probs[tied], axis=-1, kind="stable")[..., :k]
    return np.asarray(ids, np.intp)
