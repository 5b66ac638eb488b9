"""Boxes and flips of a plan's crops: read where they are stored, computed where they follow from a seed.

`CropReader` gives those of a label set's images. `StoredCrops` gives a further teacher the crops that came with
imported labels, which no seed makes.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.catalogue.records import PlanRow
from labelstore.codecs.base import Field
from labelstore.errors import NotGenerated, RejectedInput, UsageError
from labelstore.store.chosen_images import spans
from labelstore.store.group import Group
from labelstore.store.layout import BOX, Layout

if TYPE_CHECKING:
    from labelstore.store.store import Store


class CropReader:
    """Boxes and flips of the images of one label set."""

    def __init__(self, store: Store, plan: PlanRow, labels: Group, *, whole_images: bool) -> None:
        self._store, self._plan, self._labels = store, plan, labels
        self._layout = Layout.of(plan, store.num_rows)
        self._crops = store.group(f"crops/{plan.name}") if plan.stored else None
        self._whole_images = whole_images

    def first_crops(self, plan: PlanRow, labels: Group) -> CropReader:
        """The reader as if the plan had no crops but its first, a whole number of crop shards."""
        narrowed = copy.copy(self)
        narrowed._plan, narrowed._labels = plan, labels
        narrowed._layout = replace(self._layout, num_crops=plan.num_crops)
        if self._crops is not None:
            narrowed._crops = self._crops.first_crops(plan.num_crops)
        return narrowed

    def of_block(
        self, block: int, columns: range | None = None
    ) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """Boxes (n, m, 4) and flips (n, m) of one image block and chunk columns."""
        stored = self._stored(block)
        if stored is None:
            return self._computed(block, columns)
        return stored.read(block, columns, "box"), stored.read(block, columns, "flip") == 1

    def parts_of_block(
        self, block: int, columns: range
    ) -> Iterator[tuple[NDArray[np.uint16], NDArray[np.uint8]]]:
        """As `of_block`, one part per crop shard with axes in memory as on disk; flips are 255 where missing."""
        stored = self._stored(block)
        if stored is None:
            boxes, flips = self._computed(block, columns)
            yield boxes, flips.astype(np.uint8)
            return
        for part in stored.parts(block, columns, ["box", "flip"], stored_order=True):
            yield part["box"], part["flip"]

    def of_images(self, field: Field, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Boxes or flips (n, M, ...) of image rows: only the array that is asked for is read."""
        values_of_images = np.empty((len(rows), self._plan.num_crops, *field.shape), field.dtype)
        height, width = self._layout.images_per_shard, self._layout.num_columns
        ends = np.broadcast_to([0, width - 1], (len(rows), 2))
        for block, columns, chosen in spans(rows, ends, height):
            offsets = rows[chosen] - block * height
            stored = self._stored(block)
            if stored is None:
                boxes, flips = self._computed(block, columns, offsets)
                values_of_images[chosen] = boxes if field is BOX else flips
                continue
            start = 0
            for part in stored.parts(block, columns, [field.name], stored_order=True):
                values = part[field.name][offsets]
                values_of_images[chosen, start : start + values.shape[1]] = values
                start += values.shape[1]
        return values_of_images

    def _stored(self, block: int) -> Group | None:
        """Where the crops of an image block are read; None where they are computed."""
        # maps do not wait for crops: where a plan has grown, boxes follow from its parameters
        if self._crops is None or (self._whole_images and block not in self._crops.blocks):
            return None
        return self._crops

    def _computed(
        self, block: int, columns: range | None, offsets: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """Seeded crops: boxes are a pure function of seed, key, image size and crop number.

        Of a whole image block, or of the images at `offsets` in it.
        """
        self._labels.shard(block, 0)
        columns = range(self._layout.num_columns) if columns is None else columns
        per = self._plan.crops_per_chunk
        crops = np.arange(columns.start * per, columns.stop * per)
        rows = np.asarray(self._layout.rows(block))
        rows = rows if offsets is None else rows[offsets]
        images = self._store.image_columns
        sizes = np.stack([images["height"][rows], images["width"][rows]], axis=1)
        known = np.flatnonzero(sizes.min(axis=1) > 0)
        boxes = np.full((len(rows), len(crops), *BOX.shape), BOX.fill, BOX.dtype)
        flips = np.zeros((len(rows), len(crops)), bool)
        keys = images["key"][rows[known]].tolist()
        boxes[known], flips[known] = self._store.crop_plan(self._plan.name).crops_of_images(
            keys, sizes[known], np.broadcast_to(crops, (len(known), len(crops)))
        )
        return boxes, flips


BLOCKS_KEPT = 4
"""Decoded image blocks: images come in the order of the rows."""


class StoredCrops:
    """Boxes and flips of a plan by image key; threads may share it."""

    def __init__(self, store: Store, plan: PlanRow) -> None:
        if plan.parameters.get("mixed"):
            raise UsageError(
                f"crop plan {plan.name} was imported with crops that were mixed before the teacher saw them: "
                "a further teacher would see something else; make another plan for it"
            )
        self._store = store
        self._plan = plan
        self._layout = Layout.of(plan, store.num_rows)
        self._blocks: OrderedDict[int, tuple[NDArray[np.uint16], NDArray[np.uint8]]] = OrderedDict()
        self._lock = threading.Lock()

    def crops(
        self, key: str, height: int, width: int, crops: NDArray[np.integer[Any]]
    ) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """Boxes (m, 4) and flips (m,) of one image; NotGenerated where they were not imported yet.

        RejectedInput for an image of another size than the boxes were made for.
        """
        row = self._store.row_of_key[key]
        block, offset = divmod(row, self._layout.images_per_shard)
        boxes, flips = self._block(block, key)
        columns = self._store.image_columns
        known = (int(columns["height"][row]), int(columns["width"][row]))
        if known != (height, width):
            raise RejectedInput(
                f"{key}: is {height} x {width} pixels (height x width), its imported crops are of {known[0]} x "
                f"{known[1]}"
            )
        return boxes[offset][crops], flips[offset][crops] == 1

    def _block(self, block: int, key: str) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
        with self._lock:
            if block not in self._blocks:
                group = self._store.group(f"crops/{self._plan.name}")
                if block not in group.blocks:
                    raise NotGenerated(
                        f"{key}: its crops were not imported yet; "
                        "run the same `labelstore.import_labels` again to finish them"
                    )
                self._blocks[block] = (
                    group.read(block, None, "box"),
                    group.read(block, None, "flip"),
                )
                while len(self._blocks) > BLOCKS_KEPT:
                    self._blocks.popitem(last=False)
            self._blocks.move_to_end(block)
            return self._blocks[block]
