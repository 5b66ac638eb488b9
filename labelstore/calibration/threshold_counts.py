"""Crops below and above many thresholds, by class, in one walk: what any rule made of them would do.

Equal to what `calibrate` does, crop for crop: thresholds are compared as float32, and p = low is not below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.blocks.block_map import MapBlocks, map_in_threads
from labelstore.calibration.criterion import Criterion, block_slabs
from labelstore.calibration.quantiles import BUCKETS, INFINITY_BUCKET, LOW_BITS, bits_of
from labelstore.calibration.regions import RegionThresholds

if TYPE_CHECKING:
    from labelstore.store import LabelSet

Counts = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RegionCounts:
    """Crops of each region, and images that would be left out."""

    too_hard: int
    hard: int
    important: int
    too_easy: int
    missing: int
    """Crops without a label: not in `num_crops` and in no share."""
    images: int
    """Images with any labelled crop."""
    images_without_crop: int
    """Images whose labelled crops are all discarded: a run leaves them out."""

    @property
    def num_crops(self) -> int:
        """Labelled crops."""
        return self.too_hard + self.hard + self.important + self.too_easy

    @property
    def usable(self) -> int:
        """Crops that would be drawn: hard and important."""
        return self.hard + self.important

    def share(self, count: int) -> float:
        """A count as a share of the labelled crops."""
        return count / self.num_crops if self.num_crops else 0.0


@dataclass(frozen=True, kw_only=True)
class ThresholdCounts:
    """Crops by class below and above each of G thresholds, over all committed crops of a label set.

    Classes are those of the data set; the last row is for images without ground truth.
    """

    values: tuple[float, ...]
    """G thresholds, ascending."""
    labelled: Counts
    """(classes + 1,) crops with a label."""
    images: Counts
    """(classes + 1,) images with a label."""
    below: Counts
    """(classes + 1, G) crops with p < value."""
    above: Counts
    """(classes + 1, G) crops with p > value."""
    missing: int
    """Crops without a label, of images that lie in committed blocks."""
    pairs: tuple[tuple[float, float], ...]
    """(low, top) for which images were looked at."""
    left_out: Counts
    """(classes + 1, pairs) images all of whose labelled crops lie below low or above top."""

    def by_class(self, rule: RegionThresholds) -> Counts:
        """(classes + 1, 4): crops of each class in the regions TOO_HARD, HARD, IMPORTANT, TOO_EASY."""
        low, middle, top = (self.values.index(v) for v in (rule.low, rule.middle, rule.top))
        too_hard, too_easy = self.below[:, low], self.above[:, top]
        hard = self.below[:, middle] - too_hard
        return np.stack(
            [too_hard, hard, self.labelled - too_hard - hard - too_easy, too_easy], axis=1
        )

    def counts(self, rule: RegionThresholds) -> RegionCounts:
        """Count what the rule does to all crops; its thresholds must be among the values, (low, top) in the pairs."""
        left_out = self.left_out[:, self.pairs.index((rule.low, rule.top))]
        return self.regions(rule, images_without_crop=int(left_out.sum()))

    def regions(self, rule: RegionThresholds, *, images_without_crop: int = 0) -> RegionCounts:
        """`counts`, where the images that are left out are given."""
        too_hard, hard, important, too_easy = self.by_class(rule).sum(axis=0).tolist()
        return RegionCounts(
            too_hard=too_hard,
            hard=hard,
            important=important,
            too_easy=too_easy,
            missing=self.missing,
            images=int(self.images.sum()),
            images_without_crop=images_without_crop,
        )


def count_thresholds(
    labels: LabelSet,
    values: Sequence[float],
    *,
    pairs: Sequence[tuple[float, float]] = (),
    criterion: Criterion = "max_probability",
    columns: range | None = None,
    map_blocks: MapBlocks = map_in_threads,
) -> ThresholdCounts:
    """Counts for all `values`; for `pairs` (low, top) also images that would be left without a crop. One walk.

    With `columns`, over the crops of these chunk columns only: as many of every image, a fair sample of its crops.
    """
    ordered = tuple(sorted({*values, *(value for pair in pairs for value in pair)}))
    wanted = tuple(dict.fromkeys(pairs))
    total: dict[str, Any] = {}
    job = partial(_count_block, labels, criterion, ordered, wanted, columns)
    for found in map_blocks(job, labels.blocks):
        for name, value in found.items():
            total[name] = total[name] + value if name in total else value
    if not total:
        total = _zeros(labels, len(ordered), len(wanted))
    return ThresholdCounts(values=ordered, pairs=wanted, **total)


def _zeros(labels: LabelSet, num_values: int, num_pairs: int) -> dict[str, Any]:
    classes = len(labels.store.class_names) + 1
    shapes = {"labelled": (), "images": (), "below": (num_values,), "above": (num_values,)}
    zeros = {name: np.zeros((classes, *shape), np.int64) for name, shape in shapes.items()}
    return {**zeros, "left_out": np.zeros((classes, num_pairs), np.int64), "missing": 0}


def _count_block(
    labels: LabelSet,
    criterion: Criterion,
    values: tuple[float, ...],
    pairs: tuple[tuple[float, float], ...],
    wanted: range | None,
    block: int,
) -> dict[str, Any]:
    rows = labels.block_rows(block)
    labelled = np.zeros(len(rows), np.int64)
    below, above = (np.zeros((len(rows), len(values)), np.int64) for _ in range(2))
    # rows that no image has are missing nowhere
    is_image = ~labels.store.free[rows.start : rows.stop]
    crops = 0
    for probability in block_slabs(labels, criterion, block, wanted):
        crops += int(np.count_nonzero(is_image)) * probability.shape[1]
        own_below, own_above, own_labelled = compared(probability, values)
        below += own_below
        above += own_above
        labelled += own_labelled
    found = _zeros(labels, len(values), len(pairs))
    # -1, no ground truth, is the last row
    truth = labels.ground_truth[rows.start : rows.stop]
    np.add.at(found["labelled"], truth, labelled)
    np.add.at(found["images"], truth, labelled > 0)
    np.add.at(found["below"], truth, below)
    np.add.at(found["above"], truth, above)
    for i, (low, top) in enumerate(pairs):
        discarded = below[:, values.index(low)] + above[:, values.index(top)]
        np.add.at(found["left_out"][:, i], truth, (discarded == labelled) & (labelled > 0))
    found["missing"] = crops - int(labelled.sum())
    return found


def compared(
    probability: NDArray[np.float32], values: Sequence[float]
) -> tuple[Counts, Counts, Counts]:
    """Per row of (n, m): how many values are below and above each threshold, (n, G), and how many are not NaN, (n,).

    A table by the upper bits of a number says how many values lie below it; only numbers whose upper bits are those of
    a value are compared. So 200 values cost little more than ten.
    """
    sorted_values, place, below_bucket, holds_value = _buckets(tuple(values))
    rows, last = len(probability), len(sorted_values)
    bits = bits_of(probability)
    flat = bits.view(np.float32)
    buckets = bits >> LOW_BITS
    # how many values do not exceed it; NaN has a bin of its own at the end
    bins = below_bucket[buckets]
    near = np.flatnonzero(holds_value[buckets])
    bins[near] = np.searchsorted(sorted_values, flat[near], side="right")
    equal = near[sorted_values[np.maximum(bins[near] - 1, 0)] == flat[near]]
    bins += np.repeat(np.arange(rows) * (last + 2), probability.shape[1])

    def per_row(chosen: NDArray[np.int64]) -> Counts:
        return np.bincount(chosen, minlength=rows * (last + 2)).reshape(rows, last + 2)

    counts = per_row(bins)
    below = np.cumsum(counts[:, :last], axis=1)
    labelled = counts[:, : last + 1].sum(axis=1)
    above = labelled[:, None] - below - per_row(bins[equal])[:, 1 : last + 1]
    return below[:, place], above[:, place], labelled


@lru_cache(4)
def _buckets(
    values: tuple[float, ...],
) -> tuple[NDArray[np.float32], Counts, Counts, NDArray[np.bool_]]:
    """Sorted values, each value's place among them, and by bucket: values in smaller buckets, whether it holds one."""
    sorted_values, place = np.unique(np.array(values, np.float32), return_inverse=True)
    counts = np.bincount(bits_of(sorted_values) >> LOW_BITS, minlength=BUCKETS)
    below = np.cumsum(counts) - counts
    below[INFINITY_BUCKET:] = len(sorted_values) + 1
    return sorted_values, place, below, counts > 0
