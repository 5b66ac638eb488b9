"""float16 that keeps the largest probability of a label on its side of every multiple of 0.05.

FerKD's bins (Table 1) and thresholds (Eq. 4) are such multiples. 0.8 itself is 0.7998 in float16: rounded to the
nearest, a crop of exactly 0.8 would fall into the bin below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Rows = NDArray[np.intp]

TWENTIETHS = (np.arange(1, 20) / 20).astype(np.float32)
NUDGES = 64
"""Rounds at most: a step of float16 moves the recovered probability by a twentieth of a step or more, and about one
step can be missing."""


def keep_sides(
    stored: NDArray[Any], largest: Float, recovered: Callable[[Rows], Float]
) -> NDArray[Any]:
    """Stored float16 (r, K) whose labels' largest probability is where `largest` (r,), the teacher's, is.

    `stored` is changed in place. `recovered(rows)` gives the largest probability of these rows as they are read back.
    Exactly a multiple counts as above it. NaN rows stay.
    """
    side = np.searchsorted(TWENTIETHS, largest, side="right")
    rows = np.flatnonzero(~np.isnan(largest))
    for _ in range(NUDGES):
        found = np.searchsorted(TWENTIETHS, recovered(rows), side="right")
        wrong = found != side[rows]
        rows, up = rows[wrong], (found < side[rows])[wrong]
        if not rows.size:
            break
        part = stored[rows]
        at = part.argmax(axis=1)[:, None]
        first = np.take_along_axis(part, at, 1)
        first = np.nextafter(first, np.where(up[:, None], 1, 0).astype(stored.dtype))
        np.put_along_axis(part, at, first, 1)
        stored[rows] = np.minimum(part, first)
    return stored
