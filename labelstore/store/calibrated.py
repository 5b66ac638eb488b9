"""What calibration does to a label: hard regions get the softened ground truth (FerKD Eq. 4, "HR")."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import SparseLabels
from labelstore.store.mask import Mask, Region, is_usable


def calibrate_label(
    labels: SparseLabels,
    regions: NDArray[np.uint8],
    ground_truth: NDArray[np.integer],
    epsilon: float,
    num_classes: int,
) -> SparseLabels:
    """Labels (..., K) with HARD rows replaced: ground truth 1 - epsilon, epsilon / (C - 1) elsewhere.

    `regions` is (...) and `ground_truth` is broadcast to it: (n, 1) for (n, m) crops of n images. The
    other rows stay as they are. The result is new arrays; classes of a row stay distinct, and the ground
    truth comes first in it.
    """
    class_ids, probs, rest = labels.class_ids.copy(), labels.probs.copy(), labels.rest.copy()
    hard = regions == Region.HARD
    if not hard.any():
        return SparseLabels(class_ids=class_ids, probs=probs, rest=rest)
    truth = np.broadcast_to(ground_truth, regions.shape)[hard].astype(class_ids.dtype)
    ids = class_ids[hard]
    # where the ground truth is listed already, the first class takes its place: no class twice
    place = np.where(ids == truth[:, None], ids[:, :1], ids)
    place[:, 0] = truth
    elsewhere = epsilon / max(num_classes - 1, 1)
    softened = np.full(place.shape, elsewhere, np.float32)
    softened[:, 0] = 1 - epsilon
    class_ids[hard], probs[hard], rest[hard] = place, softened, elsewhere
    return SparseLabels(class_ids=class_ids, probs=probs, rest=rest)


def calibrate_dense(
    labels: NDArray[np.float32],
    regions: NDArray[np.uint8],
    ground_truth: NDArray[np.integer],
    epsilon: float,
    num_classes: int,
) -> NDArray[np.float32]:
    """`calibrate_label` for dense labels (..., C)."""
    hard = regions == Region.HARD
    truth = np.broadcast_to(ground_truth, regions.shape)[hard]
    softened = np.full((len(truth), num_classes), epsilon / max(num_classes - 1, 1), np.float32)
    softened[np.arange(len(truth)), truth] = 1 - epsilon
    calibrated = labels.copy()
    calibrated[hard] = softened
    return calibrated


def calibrated(
    labels: SparseLabels | NDArray[np.float32],
    mask: Mask,
    regions: NDArray[np.uint8],
    ground_truth: NDArray[np.integer],
    num_classes: int,
) -> SparseLabels | NDArray[np.float32]:
    """Labels, sparse (..., K) or dense (..., C), with what the mask's rule makes of HARD ones."""
    epsilon = float(mask.rule["epsilon"])
    if isinstance(labels, SparseLabels):
        return calibrate_label(labels, regions, ground_truth, epsilon, num_classes)
    return calibrate_dense(labels, regions, ground_truth, epsilon, num_classes)


def without_discarded(
    labels: SparseLabels | NDArray[np.float32], regions: NDArray[np.uint8]
) -> SparseLabels | NDArray[np.float32]:
    """The same labels, which calibration made, NaN in place where a crop is not drawn."""
    discarded = ~is_usable(regions)
    if discarded.any():
        for values in (
            (labels.probs, labels.rest) if isinstance(labels, SparseLabels) else (labels,)
        ):
            values[discarded] = np.nan
    return labels
