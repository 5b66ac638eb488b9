"""Curricula: each image's crops in the order of how sure the teacher is of them (FerKD Fig. 5).

easy-to-hard draws an image's most probable crops first, hard-to-easy its least probable ones; with U usable crops
position t is the crop of rank t mod U, so that every usable crop comes once before any comes twice, and the order is
monotone within a cycle. Crops of equal probability come in the order of their numbers: a seed has no say.
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
) -> NDArray[np.intp]:
    """(n, len(positions)) crop numbers of n images with (n, M) probabilities, at least one usable crop each.

    >>> ranked_crops(np.array([[0.5, 0.9, 0.7]], "f4"), np.array([[True, True, False]]), range(4), "easy-to-hard")
    array([[1, 0, 1, 0]])
    """
    counts = usable.sum(axis=1)
    if len(counts) and not counts.min():
        raise UsageError("an image without a usable crop cannot be drawn: leave it out")
    sign = -1 if order == "easy-to-hard" else 1
    keys = np.where(usable, sign * max_probability, np.inf)
    ranked = np.argsort(keys, axis=1, kind="stable")
    places = np.arange(positions.start, positions.stop) % counts[:, None]
    return np.take_along_axis(ranked, places, axis=1)
