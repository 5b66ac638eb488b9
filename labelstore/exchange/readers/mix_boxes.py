"""How large the teacher's input was, by the boxes that CutMix replaced in it.

Mix boxes are in pixels of the input, so that a student of another input size needs its side S. The programs draw them
by the law of Yun et al. (2019), along each axis: with half = int(S sqrt(1 - share)) // 2 and a centre c of 0 to S - 1,

    start = max(c - half, 0)        stop = min(c + half, S)

A box that is cut at no edge has 2 half pixels; none reaches beyond S. Few sides agree with several boxes, and only one
with most files: then it is proved.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from labelstore.errors import RejectedInput, UsageError

FURTHEST = 4
"""Sides of up to so many times the furthest edge are tried."""

MixBox = tuple[float, tuple[int, int, int, int]]
"""Share of the crop's own, and the replaced box: top, left, height, width."""


def possible_sides(boxes: Sequence[MixBox]) -> list[int]:
    """Sides of an input in which all of these boxes can have been drawn, ascending.

    >>> possible_sides([(0.75, (10, 3, 48, 48)), (0.1, (0, 12, 70, 84))])
    [96]
    """
    if not boxes:
        return []
    shares = np.array([share for share, _ in boxes])
    edges = np.array([(top, left, top + tall, left + wide) for _, (top, left, tall, wide) in boxes])
    sides = np.arange(max(int(edges.max()), 1), FURTHEST * int(edges.max()) + 1)[:, None]
    half = (sides * np.sqrt(1 - shares)).astype(np.int64) // 2
    fits = np.ones(half.shape, bool)
    for start, stop in ((edges[:, 0], edges[:, 2]), (edges[:, 1], edges[:, 3])):
        whole = stop - start == 2 * half
        # cut at an edge: the centre is inside, so that at least half of it is there
        at_start = (start == 0) & (stop <= 2 * half) & (stop >= np.minimum(half, sides))
        at_end = (stop == sides) & (stop - start <= 2 * half) & (stop - start > half)
        at_both = (start == 0) & (stop == sides)
        fits &= (whole & (start >= 0) & (stop <= sides)) | at_start | at_end | at_both
    return [int(side) for side in sides[fits.all(1), 0]]


def check_side(boxes: Sequence[MixBox], stated: int | None, source: object) -> int | None:
    """Side of the teacher's input: stated and allowed by the boxes, or proved by them; None without boxes.

    RejectedInput for a stated side that cannot be; UsageError where none is stated and several can be.
    """
    boxes = [box for box in boxes if box[1][2] and box[1][3]]
    if not boxes:
        return None
    furthest = max(max(top + tall, left + wide) for _, (top, left, tall, wide) in boxes)
    sides = possible_sides(boxes)
    if stated is not None:
        if stated < furthest:
            raise RejectedInput(
                f"{source}: a mix box ends at pixel {furthest}, beyond input_size {stated}: state the size of the "
                "teacher's input"
            )
        if sides and stated not in sides:
            raise RejectedInput(
                f"{source}: its {len(boxes)} mix boxes can have been drawn on inputs of {_shown(sides)} pixels, not of "
                f"input_size {stated}"
            )
        return stated
    if len(sides) == 1:
        return sides[0]
    raise UsageError(
        f"{source}: crops were cut into in pixels of the teacher's input, whose size {len(boxes)} mix boxes up to "
        f"pixel {furthest} do not prove{f' ({_shown(sides)} are possible)' if sides else ''}: state input_size"
    )


def _shown(sides: Sequence[int]) -> str:
    if len(sides) > 3:
        return f"{sides[0]} to {sides[-1]}"
    return " or ".join(map(str, sides))
