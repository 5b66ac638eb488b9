"""What a variant lost: the Kullback-Leibler divergence of its labels from the source's, over all crops."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.blocks.shipping import MapBlocks
from labelstore.blocks.slabs import slabs
from labelstore.blocks.threads import map_in_threads
from labelstore.codecs.base import SparseLabels
from labelstore.store import LabelSet

SMALLEST = 2.0**-26
"""What a probability of zero counts as in the source, below float16's half step: the teacher's was not zero."""
BINS_PER_OCTAVE = 64
"""Resolution of the percentile: 1.1 %."""
_OCTAVES = (-60, 8)
"""Binary logarithms that the percentile tells apart, in nats."""


@dataclass(frozen=True, kw_only=True)
class VariantCost:
    """Kullback-Leibler divergence of the variant's labels from the source's, in nats, over all crops of both.

    KL(variant || source) = sum_c q_c log(q_c / p_c), which is finite for every codec: for `mr` it is minus
    the logarithm of the mass that the kept classes had, for `hard` of the largest probability.
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
    """KL(variant || source) in nats of labels (n, m), NaN where one is missing.

    A dense variant needs a dense source. Both keep classes in the same order, the source at least as many.
    """
    if not isinstance(variant, SparseLabels):
        assert not isinstance(source, SparseLabels)
        q = variant.astype(np.float64)
        return _at_least_zero(_terms(q, np.log(np.maximum(source, SMALLEST))).sum(axis=-1))
    k = variant.probs.shape[-1]
    if isinstance(source, SparseLabels):
        listed = np.log(np.maximum(source.probs.astype(np.float64), SMALLEST))
        rest = np.log(np.maximum(source.rest.astype(np.float64), SMALLEST))
        unlisted = num_classes - source.probs.shape[-1]
        others = listed[..., k:].sum(axis=-1) + (unlisted * rest if unlisted else 0.0)
        listed = listed[..., :k]
    else:
        log_p = np.log(np.maximum(source, np.float32(SMALLEST)))
        missing = np.isnan(variant.probs[..., :1])
        at = np.where(missing, 0, variant.class_ids).astype(np.intp)
        listed = np.take_along_axis(log_p, at, axis=-1).astype(np.float64)
        others = log_p.sum(axis=-1, dtype=np.float64) - listed.sum(axis=-1)
    kl = _terms(variant.probs.astype(np.float64), listed).sum(axis=-1)
    if num_classes > k:
        r = variant.rest.astype(np.float64)
        log_r = np.log(r, where=r > 0, out=np.zeros_like(r))
        kl += np.where(r > 0, r * ((num_classes - k) * log_r - others), r)
    return _at_least_zero(kl)


def _terms(q: NDArray[np.float64], log_p: NDArray[Any]) -> NDArray[np.float64]:
    log_q = np.log(q, where=q > 0, out=np.zeros_like(q))
    terms: NDArray[np.float64] = q * (log_q - log_p)
    return terms


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
