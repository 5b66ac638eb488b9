"""Exact quantiles of what a criterion says of all crops, in bounded memory.

A float32 in [0, 1] orders as its bits do. The first walk counts the upper 18 bits, which finds the
bucket of every wanted rank; the second counts the lower 13 bits inside these buckets. Labels stored in
16 or 8 bits often have nothing in the lower bits, and then the second walk is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from labelstore.blocks.block_map import MapBlocks, map_in_threads
from labelstore.calibration.criterion import Criterion, block_slabs
from labelstore.errors import NotGenerated, UsageError

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
