"""Curricula: each image's crops in the order of how sure the teacher is of them (FerKD 4.3, Table 7).

easy-to-hard draws an image's most probable crops first and its least probable ones last, hard-to-easy the other way
round, gradually over the whole run: of its T positions per image, position t is the crop of rank floor(t U / T) among
the U usable ones. A run with as many positions as crops draws each once, a shorter one leaves some out all along the
way. Crops of equal probability come in the order of their numbers: a seed has no say.

A longer run draws a crop q = ceil(T / U) times at most, in a row: these go to different passes. Of every q passes with
equally many crops, pass i takes positions i, i + q, i + 2q, ... of those that the q passes have together (the last
group has what is left, up to 2q - 1 passes). Where there are fewer than q such passes on end, each takes the m ranks
from that of its first position on. So the m crops of an image in a pass are distinct wherever it has m.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from labelstore.errors import UsageError

if TYPE_CHECKING:
    from trainer.sampler import PassSchedule


def ranked_crops(
    max_probability: NDArray[np.float32],
    usable: NDArray[np.bool_],
    positions: range,
    order: Literal["easy-to-hard", "hard-to-easy"],
    *,
    schedule: PassSchedule,
) -> NDArray[np.intp]:
    """(n, len(positions)) crop numbers of n images with (n, M) probabilities, at least one usable crop each.

    `positions` are some of those that every image has in the run of this schedule. UsageError where they lie outside,
    or where an image has nothing to draw.

    >>> from trainer.sampler import PassSchedule
    >>> probability = np.array([[0.5, 0.9, 0.7]], "f4")
    >>> usable = np.array([[True, True, False]])
    >>> passes = PassSchedule.of(passes=2, crops_per_image=2)
    >>> ranked_crops(probability, usable, range(4), "easy-to-hard", schedule=passes)
    array([[1, 0, 1, 0]])
    """
    whole = schedule.epochs
    if len(positions) and not 0 <= positions.start < positions.stop <= whole:
        raise UsageError(
            f"positions {positions.start}-{positions.stop - 1} of a curriculum over {whole}: they must lie inside"
        )
    counts = usable.sum(axis=1)
    if len(counts) and not counts.min():
        raise UsageError("an image without a usable crop cannot be drawn: leave it out")
    sign = -1 if order == "easy-to-hard" else 1
    keys = np.where(usable, sign * max_probability, np.inf)
    ranked = np.argsort(keys, axis=1, kind="stable")
    at = slice(positions.start, positions.stop)
    ranks = np.empty((len(counts), len(positions)), np.intp)
    for count in np.unique(counts).tolist():
        ranks[counts == count] = _ranks(count, schedule)[at]
    return np.take_along_axis(ranked, ranks, axis=1)


def _ranks(count: int, schedule: PassSchedule) -> NDArray[np.intp]:
    """(T,) ranks among U = `count` usable crops, of every position of the run."""
    whole, times = schedule.epochs, -(-schedule.epochs // count)
    ranks = np.arange(whole) * count // whole
    start = 0
    for passes, m in schedule.runs():
        run = ranks[start : start + passes * m]
        if m <= count and passes < times:
            first = np.minimum(run[::m], count - m)
            run[:] = (first[:, None] + np.arange(m)).reshape(-1)
        else:
            # at one pass to a group, these are the positions themselves
            last = passes if passes < times else times + passes % times
            cut = (passes - last) * m
            for group, together in ((run[:cut], times), (run[cut:], last)):
                group[:] = group.reshape(-1, m, together).swapaxes(1, 2).reshape(-1)
        start += passes * m
    return ranks
