"""What a variant lost: the Kullback-Leibler divergence KL(source || variant) of its labels, over all crops."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.blocks.shipping import MapBlocks
from labelstore.blocks.slabs import slabs
from labelstore.blocks.threads import map_in_threads
from labelstore.codecs import densify, over_union
from labelstore.codecs.base import SparseLabels
from labelstore.store import LabelSet

SMALLEST = 2.0**-26
"""What a probability of zero counts as in the variant, below float16's half step: `mr` and `hard` have such."""
BINS_PER_OCTAVE = 64
"""Resolution of the percentile: 1.1 %."""
_OCTAVES = (-60, 8)
"""Binary logarithms that the percentile tells apart, in nats."""


@dataclass(frozen=True, kw_only=True)
class VariantCost:
    """Kullback-Leibler divergence of the variant's labels q from the source's p, in nats, over all crops of both.

    KL(source || variant) = sum_c p_c log(p_c / q_c): what the student's loss grows by where it learns q and p is right.
    A q_c of zero, which `mr` and `hard` have for classes that they do not keep, counts as 2^-26, so that it is finite.
    Both at the temperature that they were made at.
    """

    mean: float
    p99: float
    """99th percentile, to 1.1 %."""
    worst: float
    num_crops: int
    """Crops that were compared."""


def variant_cost(
    source: LabelSet, variant: LabelSet, *, map_blocks: MapBlocks = map_in_threads
) -> VariantCost:
    """What the variant lost, over all crops that both hold: read back from disk, not what was meant to be written."""
    blocks = sorted(set(source.blocks) & set(variant.blocks))
    low, high = _OCTAVES
    counts = np.zeros((high - low) * BINS_PER_OCTAVE + 1, np.int64)
    total, worst = 0.0, 0.0
    for part, counted, largest in map_blocks(partial(_block_cost, source, variant), blocks):
        total += part
        counts += counted
        worst = max(worst, largest)
    num_crops = int(counts.sum())
    if not num_crops:
        return VariantCost(mean=float("nan"), p99=float("nan"), worst=float("nan"), num_crops=0)
    at = int(np.searchsorted(np.cumsum(counts), 0.99 * num_crops))
    # the first bin is "none"; of the others the upper edge, so that no crop is flattered
    p99 = 0.0 if at == 0 else min(2.0 ** (low + at / BINS_PER_OCTAVE), worst)
    return VariantCost(mean=total / num_crops, p99=p99, worst=worst, num_crops=num_crops)


def divergence(
    source: SparseLabels | NDArray[np.float32],
    variant: SparseLabels | NDArray[np.float32],
    num_classes: int,
) -> NDArray[np.float64]:
    """KL(source || variant) in nats of labels (n, m), NaN where one is missing.

    A dense variant needs a dense source.
    """
    if not isinstance(variant, SparseLabels):
        assert not isinstance(source, SparseLabels)
        p = source.astype(np.float64)
        return _at_least_zero((_p_log_p(p) - p * _log(variant)).sum(axis=-1))
    if isinstance(source, SparseLabels):
        source, variant = _same_order(source, variant, num_classes)
    k = variant.probs.shape[-1]
    if isinstance(source, SparseLabels):
        kept, rest = source.probs.astype(np.float64), source.rest.astype(np.float64)
        unlisted = num_classes - kept.shape[-1]
        total = _p_log_p(kept).sum(axis=-1) + unlisted * _p_log_p(rest)
        others = kept[..., k:].sum(axis=-1) + unlisted * rest
        kept = kept[..., :k]
    else:
        p = source.astype(np.float64)
        total = _p_log_p(p).sum(axis=-1)
        missing = np.isnan(variant.probs[..., :1])
        at = np.where(missing, 0, variant.class_ids).astype(np.intp)
        kept = np.take_along_axis(p, at, axis=-1)
        others = np.maximum(p.sum(axis=-1) - kept.sum(axis=-1), 0.0)
    crossed = (kept * _log(variant.probs)).sum(axis=-1)
    if num_classes > k:
        crossed += others * _log(variant.rest)
    return _at_least_zero(total - crossed)


def _same_order(
    source: SparseLabels, variant: SparseLabels, num_classes: int
) -> tuple[SparseLabels, SparseLabels]:
    """Both labels over the same classes in the same order, the source's perhaps followed by more.

    They are, unless a tail of the image lists classes in its own order.
    """
    both = source, variant
    k = variant.class_ids.shape[-1]
    if np.array_equal(source.class_ids[..., :k], variant.class_ids):
        return both
    if source.class_ids.shape[-1] + k <= num_classes:
        ids, found = over_union(both, num_classes)
    else:
        found = [densify(labels, num_classes) for labels in both]
        ids = np.broadcast_to(np.arange(num_classes), found[0].shape)
    first, second = (
        SparseLabels(class_ids=ids, probs=probs, rest=labels.rest)
        for probs, labels in zip(found, both, strict=True)
    )
    return first, second


def _p_log_p(p: NDArray[Any]) -> NDArray[Any]:
    log_p: NDArray[Any] = np.log(p, where=p > 0, out=np.zeros_like(p))
    terms: NDArray[Any] = p * log_p
    return terms


def _log(q: NDArray[np.float32]) -> NDArray[np.float64]:
    floored: NDArray[np.float64] = np.maximum(q.astype(np.float64), SMALLEST)
    return np.log(floored)


def _at_least_zero(kl: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(kl, 0.0)  # rounding of float32 labels; NaN stays


def _block_cost(
    source: LabelSet, variant: LabelSet, block: int
) -> tuple[float, NDArray[np.int64], float]:
    """(sum, histogram, largest) of one image block."""
    low, high = _OCTAVES
    counts = np.zeros((high - low) * BINS_PER_OCTAVE + 1, np.int64)
    total, worst = 0.0, 0.0
    for columns in slabs(source):
        kl = divergence(
            _recovered(source, block, columns),
            _recovered(variant, block, columns),
            source.num_classes,
        )
        kl = kl[~np.isnan(kl)]
        if not kl.size:
            continue
        total += float(kl.sum())
        worst = max(worst, float(kl.max()))
        octaves = np.log2(np.maximum(kl, 2.0**low)) - low
        bins = np.ceil(octaves * BINS_PER_OCTAVE).astype(np.int64)
        counts += np.bincount(np.clip(bins, 0, len(counts) - 1), minlength=len(counts))
    return total, counts, worst


def _recovered(
    labels: LabelSet, block: int, columns: range | None
) -> SparseLabels | NDArray[np.float32]:
    if labels.codec.kept(labels.num_classes) is None:
        return labels.dense(block, columns)
    return labels.sparse(block, columns)
