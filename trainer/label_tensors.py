"""From label to what the loss takes: ground truth as a sparse label, and sparse labels as tensors on a device.

Letters: B crops in a batch, K kept classes, C classes. Labels stay sparse all the way (`class_ids`, `probs`,
`rest`, see `labelstore.codecs.base.SparseLabels`); a codec's own `decode` made them from its arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labelstore.codecs.base import SparseLabels
from labelstore.devices import moved

LabelTensors = tuple[Tensor, Tensor, Tensor]
"""class_ids (B, K), probs (B, K), rest (B,), on a device."""


def ground_truth_labels(
    ground_truth: NDArray[np.integer[Any]], num_classes: int, label_smoothing: float = 0.0
) -> SparseLabels:
    """Class indices (...) -> labels (..., 1): 1 - s + s/C at the class, s/C elsewhere.

    >>> label = ground_truth_labels(np.array([2]), num_classes=4, label_smoothing=0.4)
    >>> label.probs.tolist(), label.rest.tolist()
    ([[0.699999988079071]], [0.10000000149011612])
    """
    shape = ground_truth.shape
    elsewhere = label_smoothing / num_classes
    return SparseLabels(
        class_ids=ground_truth[..., None],
        probs=np.full((*shape, 1), 1 - label_smoothing + elsewhere, np.float32),
        rest=np.full(shape, elsewhere, np.float32),
    )


def label_tensors(labels: SparseLabels, device: torch.device | str = "cpu") -> LabelTensors:
    """Labels of B crops -> class_ids (B, K) int64, probs (B, K) and rest (B,) float32 on the device.

    Axes before K are flattened into B. Class ids travel in their small dtype and are widened there.
    """
    kept = labels.class_ids.shape[-1]
    target = torch.device(device)
    class_ids = moved(_tensor(labels.class_ids), target).long()
    # float32 before they travel: mps has no float64
    probs = moved(_tensor(labels.probs).float(), target)
    rest = moved(_tensor(labels.rest).float(), target)
    return class_ids.reshape(-1, kept), probs.reshape(-1, kept), rest.reshape(-1)


def _tensor(array: NDArray[Any]) -> Tensor:
    # torch refuses read-only memory maps; a batch is small enough to copy
    return torch.from_numpy(array if array.flags.writeable else array.copy())
