"""How near outputs of one label set are to those of another, as directions: the measure of embeddings."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from labelstore.blocks.block_map import MapBlocks, map_in_threads
from labelstore.blocks.crop_slab import slabs

if TYPE_CHECKING:
    from labelstore.store import LabelSet


def mean_cosine(
    first: LabelSet, second: LabelSet, *, map_blocks: MapBlocks = map_in_threads
) -> tuple[float, float] | None:
    """Mean and least cosine of the outputs of two label sets on one plan, over the crops that both have.

    None where there are none. UsageError for label sets of probabilities.
    """
    blocks = sorted({*first.blocks} & {*second.blocks})
    cosines = list(map_blocks(partial(_cosines, first, second), blocks))
    crops = sum(count for _, count, _ in cosines)
    if not crops:
        return None
    total = sum(sums for sums, _, _ in cosines)
    return total / crops, min(least for _, _, least in cosines)


def _cosines(first: LabelSet, second: LabelSet, block: int) -> tuple[float, int, float]:
    """Sum, number and least cosine of one image block."""
    total, count, least = 0.0, 0, np.inf
    for columns in slabs(first):
        one, other = (side.raw_outputs(block, columns) for side in (first, second))
        cosines = cosine(one, other)
        cosines = cosines[~np.isnan(cosines)]
        total, count = total + float(cosines.sum()), count + cosines.size
        least = min(least, float(cosines.min(initial=np.inf)))
    return total, count, least


def cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """(..., D), (..., D) -> (...); 0 where one of them has no direction, NaN where one is missing."""
    lengths = np.linalg.norm(one, axis=-1).astype(np.float64) * np.linalg.norm(other, axis=-1)
    products = (one * other).sum(-1, dtype=np.float64)
    cosines: NDArray[np.float64] = np.where(np.isnan(lengths), np.nan, 0.0)
    np.divide(products, lengths, out=cosines, where=lengths > 0)
    return cosines
