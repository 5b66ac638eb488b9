"""Whole images instead of crops, for label maps: one box that covers the image, never flipped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.catalogue.records import PlanRow
from labelstore.commit.staging import BlockArrays
from labelstore.errors import RejectedInput
from labelstore.store import Store
from labelstore.store.layout import BOX, FLIP

MAX_SIDE = 65_534
"""Longest side of an image in pixels: boxes have 16 bits and 65,535 is their sentinel."""


@dataclass(frozen=True)
class WholeImages:
    """The plan of one crop per image: all of it, squashed to a square as ReLabel's teacher saw it."""

    def crops(
        self, key: str, height: int, width: int, crops: NDArray[np.integer[Any]]
    ) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """Boxes (m, 4) uint16 and flips (m,); RejectedInput for an image that a box cannot describe."""
        if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
            raise RejectedInput(f"{key}: {height} x {width} pixels, a side is 1 to {MAX_SIDE}")
        boxes = np.array([[0, 0, height, width]], np.uint16)
        return np.repeat(boxes, len(crops), 0), np.zeros(len(crops), bool)


def crop_shards_of(
    store: Store, plan: PlanRow, rows: range, sizes: Mapping[int, tuple[int, int]]
) -> list[BlockArrays]:
    """Boxes and flips of all crops of a plan for the images of one block: what a map's commit adds to the plan.

    `sizes` are (height, width) of the images that have labels, by image row; the others are sentinels.
    """
    known = sorted(sizes)
    keys = [str(store.image_columns["key"][image]) for image in known]
    boxes = np.full((len(rows), plan.num_crops, 4), BOX.fill, np.uint16)
    flips = np.full((len(rows), plan.num_crops), FLIP.fill, np.uint8)
    if known:
        at = [image - rows.start for image in known]
        boxes[at], flips[at] = store.crop_plan(plan.name).crops_of_images(
            keys,
            np.array([sizes[image] for image in known]),
            np.broadcast_to(np.arange(plan.num_crops), (len(known), plan.num_crops)),
        )
    width = plan.crops_per_shard
    cuts = [slice(first, first + width) for first in range(0, plan.num_crops, width)]
    return [
        BlockArrays(
            group=f"crops/{plan.name}",
            crop_shard=crop_shard,
            arrays={"box": boxes[:, cut], "flip": flips[:, cut]},
        )
        for crop_shard, cut in enumerate(cuts)
    ]
