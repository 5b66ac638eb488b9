"""RoIAlign of a box on a map to one value, as two short vectors of weights (He et al. 2017; ReLabel 3.2).

A box is sampled on a grid of ceil(height) x ceil(width) points, each a bilinear mean of four cells, and the
samples are averaged. Both steps are separable, so that

    pooled = sum_ij  down[i] * across[j] * map[i, j]

with one weight per row and one per column: what torchvision.ops.roi_align(map, box, output_size=1,
sampling_ratio=-1, aligned=False) computes. Cells are pixels with their centre at +0.5, hence box * cells - 0.5.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]


def axis_weights(start: Float, length: Float, cells: int) -> Float:
    """Weights (..., cells) of the cells along one axis for spans [start, start + length), in shares of the axis.

    They sum to one for spans inside the axis. NaN spans (missing crops) give NaN weights.
    """
    first = start * np.float32(cells) - np.float32(0.5)
    size = np.maximum(length * np.float32(cells), np.float32(1))
    missing = np.isnan(first) | np.isnan(size)
    points = np.where(missing, 1, np.ceil(size)).astype(np.int64)
    weights = np.zeros((*first.shape, cells), np.float32)
    step = size / points
    for nth in range(int(points.max(initial=0))):
        at = first + (np.float32(nth) + np.float32(0.5)) * step
        # a point more than a cell outside counts as zero, one that is just outside as on the edge
        used = (nth < points) & (at >= -1) & (at <= cells)
        inside = np.clip(np.where(used, at, 0), 0, cells - 1).astype(np.float32)
        low = inside.astype(np.int64)
        high = np.minimum(low + 1, cells - 1)
        share = inside - low
        _add(weights, low, np.where(used, 1 - share, 0))
        _add(weights, high, np.where(used, share, 0))
    weights /= points[..., None]
    weights[missing] = np.nan
    return weights


def _add(weights: Float, cell: NDArray[np.int64], value: Float) -> None:
    """weights[..., cell] += value; each row names one cell, so that none is named twice."""
    at = cell[..., None]
    np.put_along_axis(weights, at, np.take_along_axis(weights, at, -1) + value[..., None], -1)
