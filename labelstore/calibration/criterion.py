"""The probability that crops are judged by, and the labels that can be judged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from labelstore.blocks.crop_slab import slabs
from labelstore.codecs import keeps_max_probability
from labelstore.errors import RejectedInput, UsageError

if TYPE_CHECKING:
    from labelstore.store import LabelSet

Criterion: TypeAlias = Literal["max_probability", "ground_truth_probability"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)


def probabilities(
    labels: LabelSet, criterion: Criterion, block: int, columns: range | None = None
) -> NDArray[np.float32]:
    """What the criterion says of every crop of one image block: (n, m) float32, NaN where missing."""
    if criterion == "ground_truth_probability":
        return labels.ground_truth_probability(block, columns)
    return labels.max_probability(block, columns)


def block_slabs(
    labels: LabelSet, criterion: Criterion, block: int, columns: range | None = None
) -> Iterator[NDArray[np.float32]]:
    """The same, a bounded number of crops at a time, in the order of crops."""
    if criterion == "max_probability":
        yield from labels.max_probabilities(block, columns)
        return
    for part in slabs(labels, columns):
        yield probabilities(labels, criterion, block, part)


def check_calibratable(labels: LabelSet, criterion: Criterion, *, calibrates: bool) -> None:
    """UsageError or RejectedInput where these labels cannot be judged by `criterion`, or not be calibrated at all.

    `calibrates` says that some crops may get the ground truth as their label, so that every image
    needs one that the teacher's classes contain.
    """
    if not keeps_max_probability(labels.codec, labels.num_classes):
        raise UsageError(
            f"label set {labels.name} ({labels.codec.name}) does not keep the teacher's probabilities: "
            "calibrate from an ms, smoothing or full label set of the same teacher; the mask serves both"
        )
    if calibrates or criterion == "ground_truth_probability":
        check_ground_truth(labels)


def check_unmixed(labels: LabelSet) -> None:
    """RejectedInput for crops that were mixed with other images: they have no one class, and training takes no mask of
    them."""
    if labels.plan.parameters.get("mixed"):
        raise RejectedInput(
            f"the crops of label set {labels.name} were mixed with other images before the teacher saw them, and a "
            "mask calibrates by one image's class: train on these labels without a mask"
        )


def check_ground_truth(labels: LabelSet) -> None:
    """UsageError unless every labelled image has a ground truth; RejectedInput where outputs are no classes."""
    truth = labels.true_output[labels.present]
    without = int(np.count_nonzero(truth < 0))
    if without:
        raise UsageError(
            f"{without} of {len(truth)} images have no ground truth: give max_probability as the criterion "
            "and middle equal to low, so that no label is replaced by it"
        )
