"""Curricula: each image's crops in the order of how sure the teacher is of them (FerKD 4.3, Table 7).

easy-to-hard draws an image's most probable crops first and its least probable ones last, hard-to-easy the other way
round, gradually over the whole run: of its T positions per image, position t is the crop of rank floor(t U / T) among
the U usable ones. Ranks never fall, so that a run with as many positions as crops draws each once; a longer one draws
a crop several times in a row, a shorter one leaves some out all along the way. Crops of equal probability come in the
order of their numbers: a seed has no say.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from labelstore.errors import UsageError


def ranked_crops(
    max_probability: NDArray[np.float32],
    usable: NDArray[np.bool_],
    positions: range,
    order: Literal["easy-to-hard", "hard-to-easy"],
    *,
    num_positions: int,
) -> NDArray[np.intp]:
    """(n, len(positions)) crop numbers of n images with (n, M) probabilities, at least one usable crop each.

    `positions` are some of the `num_positions` that every image has in the whole run. UsageError where they lie
    outside, or where an image has nothing to draw.

    >>> probability = np.array([[0.5, 0.9, 0.7]], "f4")
    >>> usable = np.array([[True, True, False]])
    >>> ranked_crops(probability, usable, range(4), "easy-to-hard", num_positions=4)
    array([[1, 1, 0, 0]])
    """
    if len(positions) and not 0 <= positions.start < positions.stop <= num_positions:
        raise UsageError(
            f"positions {positions.start}-{positions.stop - 1} of a curriculum over {num_positions}: they must lie "
            "inside"
        )
    counts = usable.sum(axis=1)
    if len(counts) and not counts.min():
        raise UsageError("an image without a usable crop cannot be drawn: leave it out")
    sign = -1 if order == "easy-to-hard" else 1
    keys = np.where(usable, sign * max_probability, np.inf)
    ranked = np.argsort(keys, axis=1, kind="stable")
    places = np.arange(positions.start, positions.stop) * counts[:, None] // num_positions
    return np.take_along_axis(ranked, places, axis=1)
