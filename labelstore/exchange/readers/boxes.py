"""Boxes of foreign files: as shares of an image's sides, as pixels, and those that CutMix replaced.

A share (FKD and what came of it) was computed as pixels / side and rounded to float32 or float16, so that share x side
is within side x 2^-24 (2^-12) of a whole number. Where it is not, the labels were made from an image of another size.

Mix boxes are in pixels of the teacher's input, so that a student of another input size needs its side S. The programs
draw them by the law of Yun et al. (2019), along each axis: with half = int(S sqrt(1 - share)) // 2 and a centre c of 0
to S - 1,

    start = max(c - half, 0)        stop = min(c + half, S)

A box that is cut at no edge has 2 half pixels; none reaches beyond S. Few sides agree with several boxes, and only one
with most files: then it is proved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from labelstore.cropping.crop_plan import MAX_SIDE
from labelstore.errors import RejectedInput, UsageError
from labelstore.untrusted.refusal import Refused

AxisOrder = Literal["sides", "swapped"]
"""`sides`: (top / H, left / W, height / H, width / W), as FKD writes; `swapped`: top and height / W, the others / H."""

Sides = int | NDArray[np.int64]
"""Height or width of one image, or of several."""
_ROUNDING = {2: 2.0**-12, 4: 2.0**-24, 8: 2.0**-40}


@dataclass(frozen=True, kw_only=True)
class BoxShares:
    """How shares become pixels."""

    axis_order: AxisOrder = "sides"
    round_boxes: bool = False
    """Take the nearest pixel where a share is no whole number of pixels."""

    def pixels(self, shares: NDArray[Any], height: int, width: int) -> NDArray[np.uint16]:
        """Boxes (m, 4) uint16 as top, left, height, width; Refused for boxes that are not on this image."""
        if shares.ndim != 2 or shares.shape[1] != 4 or shares.dtype.kind != "f" or not len(shares):
            raise Refused(
                f"has boxes of dtype {shares.dtype} and shape {shares.shape}, not (crops, 4)"
            )
        boxes, off = self._boxes(shares, height, width)
        problem = self._problem(boxes, off.max(), shares.dtype.itemsize, height, width)
        if problem is not None:
            other = BoxShares(axis_order="sides" if self.axis_order == "swapped" else "swapped")
            swapped, off = other._boxes(shares, height, width)
            if other._problem(swapped, off.max(), shares.dtype.itemsize, height, width) is None:
                problem += f"; they fit with `axis_order={other.axis_order}`"
            raise Refused(problem)
        return np.ascontiguousarray(boxes.T.astype(np.uint16))

    def pixels_of_images(
        self, shares: NDArray[Any], sides: NDArray[np.int64]
    ) -> NDArray[np.uint16]:
        """`pixels` of boxes (m, 4) of several images, with each box's height and width (m, 2).

        Raises Refused without a message where `pixels` would refuse one of them or move it.
        """
        if shares.ndim != 2 or shares.shape[1] != 4 or shares.dtype.kind != "f" or self.round_boxes:
            raise Refused("differ")
        height, width = sides.T
        boxes, off = self._boxes(shares, height, width)
        if not _fit(boxes, off, shares.dtype.itemsize, height, width).all():
            raise Refused("differ")
        return np.ascontiguousarray(boxes.T.astype(np.uint16))

    def fits(self, shares: NDArray[Any], sides: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these boxes (r, 4) are whole pixels of which images of height and width (k, 2): (r, k)."""
        height, width = sides.T
        boxes, off = self._boxes(shares[:, None], height, width)
        return _fit(boxes, off, shares.dtype.itemsize, height, width)

    def _boxes(
        self, shares: NDArray[Any], height: Sides, width: Sides
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Boxes (..., 4) edge by edge (4, ...), rounded, and how far the worst edge of each is from a whole pixel.

        NaN: an edge is no number.
        """
        order = (width, height) if self.axis_order == "swapped" else (height, width)
        sides = np.array(order * 2, np.float64)
        edges = np.moveaxis(shares, -1, 0).astype(np.float64, order="C")
        exact = edges * sides.reshape(4, *(1,) * (edges.ndim - sides.ndim), *sides.shape[1:])
        boxes = np.rint(exact)
        with np.errstate(invalid="ignore"):  # infinite boxes are refused, as NaN is
            exact -= boxes
        return boxes, np.abs(exact, out=exact).max(axis=0)

    def _problem(
        self,
        boxes: NDArray[np.float64],
        off: np.floating[Any],
        itemsize: int,
        height: int,
        width: int,
    ) -> str | None:
        size = f"{height} x {width} pixels (height x width)"
        if not np.isfinite(off):
            return "has boxes that are NaN or infinite"
        allowed = float(_allowed(itemsize, height, width))
        if self.round_boxes:
            self._clip(boxes, 1 + allowed, height, width)
        elif allowed >= 0.5:
            return (
                f"has boxes in float{8 * itemsize}, which are not exact on an image of {size}: "
                "`round_boxes` takes the nearest pixels"
            )
        top, left, tall, wide = boxes
        if min(top.min(), left.min()) < 0 or min(tall.min(), wide.min()) < 1:
            return f"has boxes that are empty or begin outside of an image of {size}"
        if (top + tall).max() > height or (left + wide).max() > width:
            return f"has boxes that reach beyond an image of {size}"
        if off > allowed and not self.round_boxes:
            return (
                f"has boxes that are {off:.2f} pixels off whole pixels of an image of {size}: they were made from "
                "a copy of another size; give that folder, or `round_boxes` to take the nearest pixels"
            )
        return None

    def _clip(self, boxes: NDArray[np.float64], by: float, height: int, width: int) -> None:
        """Bring edges that rounding put up to so many pixels outside back in."""
        for axis, side in ((0, height), (1, width)):
            start, length = boxes[axis], boxes[axis + 2]
            np.maximum(length, 1, out=length)
            over = np.minimum(np.maximum(start + length - side, 0), by // 1)
            shorter = np.minimum(over, length - 1)
            length -= shorter
            start -= over - shorter


def _allowed(itemsize: int, height: Sides, width: Sides) -> NDArray[np.float64]:
    """How far a share of so many bytes may be from a whole pixel of an image."""
    return np.maximum(height, width) * _ROUNDING[itemsize] + 1e-6


def _fit(
    boxes: NDArray[np.float64],
    off: NDArray[np.float64],
    itemsize: int,
    height: Sides,
    width: Sides,
) -> NDArray[np.bool_]:
    """Whether boxes (4, ...) are whole pixels and lie in their images."""
    allowed = _allowed(itemsize, height, width)
    top, left, tall, wide = boxes
    fits: NDArray[np.bool_] = (off <= allowed) & (allowed < 0.5)
    fits &= (top >= 0) & (left >= 0) & (tall >= 1) & (wide >= 1)
    with np.errstate(invalid="ignore"):  # of infinite boxes
        fits &= (top + tall <= height) & (left + wide <= width)
    return fits


def box_shares(axis_order: str | None, *, round_boxes: bool) -> BoxShares:
    """How shares become pixels, as a user said; UsageError for an order that boxes do not have."""
    if axis_order not in (None, "sides", "swapped"):
        raise UsageError(f"`axis_order={axis_order}`: boxes are sides or swapped")
    return BoxShares(
        axis_order="swapped" if axis_order == "swapped" else "sides", round_boxes=round_boxes
    )


def whole_image(num_crops: int, height: int, width: int) -> NDArray[np.uint16]:
    """Boxes (m, 4) that are the image."""
    return np.repeat(np.array([[0, 0, height, width]], np.uint16), num_crops, 0)


def pixel_boxes_fit(boxes: NDArray[Any], sides: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether all of these boxes (m, 4) in pixels lie in images of height and width (k, 2): (k,)."""
    far = (boxes[:, :2] + boxes[:, 2:]).max(0)
    fits: NDArray[np.bool_] = (far <= sides).all(-1)
    return fits


def pixel_boxes(values: NDArray[Any], height: int, width: int) -> NDArray[np.uint16]:
    """Boxes (m, 4) that a file gives in pixels; Refused for boxes that are not on an image of this size."""
    if values.ndim != 2 or values.shape[1] != 4 or values.dtype.kind not in "iu":
        raise Refused(
            f"has boxes of dtype {values.dtype} and shape {values.shape}, not whole pixels (crops, 4)"
        )
    boxes = values.astype(np.int64)
    if (
        boxes.min(initial=0) < 0
        or boxes.max(initial=0) > MAX_SIDE
        or boxes[:, 2:].min(initial=1) < 1
    ):
        raise Refused("has boxes that are empty or have negative corners")
    far = boxes[:, :2] + boxes[:, 2:]
    if far[:, 0].max(initial=0) > height or far[:, 1].max(initial=0) > width:
        raise Refused(
            f"has boxes that reach beyond an image of {height} x {width} pixels (height x width)"
        )
    return boxes.astype(np.uint16)


def pixel_box(value: object) -> tuple[int, int, int, int]:
    """One box that a file lists in pixels; Refused for anything but four whole numbers from 0 up."""
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        raise Refused("holds a crop without a box")
    if not all(type(edge) is int and 0 <= edge <= MAX_SIDE for edge in value):
        raise Refused("holds a box that is no box in pixels")
    top, left, height, width = value
    return top, left, height, width


FURTHEST = 4
"""Sides of up to so many times the furthest edge are tried."""

MixBox = tuple[float, tuple[int, int, int, int]]
"""Share of the crop's own, and the replaced box: top, left, height, width."""


def mix_box(share: float, edges: Sequence[int]) -> MixBox:
    """The share and the box that a file gives by its edges top, left, bottom, right; Refused for edges of none.

    Without height nothing was replaced; the share becomes 1, since it would say that the two crops were blended.
    """
    top, left, bottom, right = edges
    if not (0 <= top <= bottom <= MAX_SIDE and 0 <= left <= right <= MAX_SIDE):
        raise Refused(f"holds mixing box {top}, {left}, {bottom}, {right}")
    return share if top < bottom else 1.0, (top, left, bottom - top, right - left)


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
