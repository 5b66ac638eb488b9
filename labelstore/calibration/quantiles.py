"""The probability that a criterion judges crops by, and its exact quantiles over all crops in bounded memory.

A float32 in [0, 1] orders as its bits do. The first walk counts the upper 18 bits, which finds the
bucket of every wanted rank; the second counts the lower 13 bits inside these buckets. Labels stored in
16 or 8 bits often have nothing in the lower bits, and then the second walk is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from labelstore.blocks.block_map import MapBlocks, map_in_threads
from labelstore.blocks.crop_slab import slabs
from labelstore.codecs import keeps_max_probability
from labelstore.errors import NotGenerated, RejectedInput, UsageError

if TYPE_CHECKING:
    from labelstore.store import LabelSet


LOW_BITS = 13
BUCKETS = 1 << (31 - LOW_BITS)
INFINITY_BUCKET = 0x7F800000 >> LOW_BITS
"""Buckets from here on hold NaN: crops without a label."""


def exact_quantiles(
    labels: LabelSet,
    shares: Sequence[float],
    *,
    criterion: Criterion = "max_probability",
    map_blocks: MapBlocks = map_in_threads,
) -> list[float]:
    """For each share q the smallest stored probability that at least q of the crops do not exceed.

    So fewer than q of the crops lie below it (none for q = 0) and at most 1 - q above it. The result is
    a value that occurs, independent of the order and the grouping of crops. Crops without labels do not count.
    """
    for share in shares:
        if not 0 <= share <= 1:
            raise UsageError(f"quantile {share}: give a share between 0 and 1")
    coarse = np.zeros(BUCKETS, np.int64)
    exact = True
    for counts, no_low_bits in map_blocks(partial(_coarse, labels, criterion), labels.blocks):
        coarse += counts
        exact &= no_low_bits
    coarse = coarse[:INFINITY_BUCKET]
    below = np.cumsum(coarse)
    total = int(below[-1])
    if total == 0:
        raise NotGenerated(
            f"label set {labels.name} has no labels yet: run the same `labelstore.generate` again"
        )
    # the shares as they were written: 0.07 * 100 is 7, not 7.000000000000001
    ranks = [max(1, ceil(Fraction(str(share)) * total)) for share in shares]
    buckets = [int(np.searchsorted(below, rank)) for rank in ranks]
    if exact:
        return [_probability(bucket, 0) for bucket in buckets]
    wanted = sorted(set(buckets))
    fine = np.zeros((len(wanted), 1 << LOW_BITS), np.int64)
    for counts in map_blocks(partial(_fine, labels, criterion, wanted), labels.blocks):
        fine += counts
    found = []
    for rank, bucket in zip(ranks, buckets, strict=True):
        inside = np.cumsum(fine[wanted.index(bucket)])
        low = int(np.searchsorted(inside, rank - int(below[bucket] - coarse[bucket])))
        found.append(_probability(bucket, low))
    return found


def _coarse(labels: LabelSet, criterion: Criterion, block: int) -> tuple[NDArray[np.int64], bool]:
    counts = np.zeros(BUCKETS, np.int64)
    no_low_bits = True
    for slab in block_slabs(labels, criterion, block):
        bits = bits_of(slab)
        counts += np.bincount(bits >> LOW_BITS, minlength=BUCKETS)
        no_low_bits = no_low_bits and not (np.bitwise_or.reduce(bits) & ((1 << LOW_BITS) - 1))
    return counts, no_low_bits


def _fine(
    labels: LabelSet, criterion: Criterion, wanted: Sequence[int], block: int
) -> NDArray[np.int64]:
    size = 1 << LOW_BITS
    counts = np.zeros((len(wanted), size), np.int64)
    for slab in block_slabs(labels, criterion, block):
        bits = bits_of(slab)
        bucket = bits >> LOW_BITS
        for row, number in enumerate(wanted):
            counts[row] += np.bincount(bits[bucket == number] & (size - 1), minlength=size)
    return counts


def bits_of(probability: NDArray[np.float32]) -> NDArray[np.uint32]:
    """The bits of probabilities of any shape, flat: they order as the probabilities do, NaN last."""
    # without the sign: -0.0 counts as 0, and a NaN's sign depends on the processor
    flat = np.ascontiguousarray(probability, np.float32).reshape(-1)
    return flat.view(np.uint32) & np.uint32(0x7FFFFFFF)


def _probability(bucket: int, low: int) -> float:
    return float(np.array(bucket << LOW_BITS | low, np.uint32).view(np.float32))


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
    """The same, a bounded number of crops at a time, in the order of crops.

    An array holds its values until the next one is asked for.
    """
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
