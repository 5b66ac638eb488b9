"""Mixtures for the teacher: as the plan's law draws them or as they are stored, and the partners' pixels."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from labelstore.catalogue.records import PlanRow
from labelstore.cropping.crop_augmentation import Operations, planned_augmentation
from labelstore.cropping.crop_mixing import Partner, planned_mixing
from labelstore.cropping.replay import decode, mix_pixels, replay
from labelstore.errors import RejectedInput, StorageError
from labelstore.images import ImageSource, digest
from labelstore.store import Store
from labelstore.store.layout import MIX_FIELDS

IMAGES_KEPT = 24
"""Decoded partners: those of the images that are being cropped."""
SHARDS_KEPT = 4

UNKNOWN = -1
"""Height of an image that has not been decoded yet."""

Mixes = dict[str, NDArray[Any]]
"""The fields of `schema.MIX_FIELDS`, (m, ...)."""


class MixedCrops:
    """What crops of a plan are mixed with; threads may share it."""

    def __init__(self, store: Store, plan: PlanRow, images: ImageSource) -> None:
        law = planned_mixing(plan.parameters)
        assert law is not None
        self._store, self._plan, self._images, self._law = store, plan, images, law
        self._augmentation = planned_augmentation(plan.parameters)
        self._keys = [str(key) for key in store.image_columns["key"]]
        self._group = store.group(f"crops/{plan.name}")
        columns = store.image_columns
        self._sizes = np.stack([columns["height"], columns["width"]], axis=1)
        self._committed = store.catalogue.ledger.committed(f"crops/{plan.name}")
        self._decoded: OrderedDict[int, torch.Tensor | None] = OrderedDict()
        self._stored: OrderedDict[tuple[int, int], Mixes] = OrderedDict()
        self._lock = threading.Lock()

    def of(
        self, row: int, first: int, boxes: NDArray[np.uint16], flips: NDArray[np.bool_]
    ) -> Mixes:
        """Fields of all M crops of an image with boxes (M, 4) and flips (M,); those before `first` are not mixed.

        Where the crops are committed, by whomever, it is what is stored. RejectedInput for a partner that changed.
        """
        crops = np.arange(len(boxes))
        found = _unmixed(row, boxes, flips)
        per = self._plan.crops_per_shard
        block, offset = divmod(row, self._plan.images_per_shard)
        drawn = []
        for shard in range(first // per, len(boxes) // per):
            inside = slice(shard * per, (shard + 1) * per)
            if shard in self._committed.get(block, ()):
                for name, values in self._shard(block, shard).items():
                    found[name][inside] = values[offset]
            else:
                drawn.append(crops[inside])
        if drawn:
            wanted = np.concatenate(drawn)
            made = self._law.fields(
                row, self._keys[row], wanted, boxes[wanted], flips[wanted], self._partner
            )
            for name, values in made.items():
                found[name][wanted] = values
        return found

    def mix_in(
        self, crops: torch.Tensor, numbers: NDArray[Any], mixes: Mixes, interpolation: str
    ) -> None:
        """Mix uint8 crops (m, 3, S, S) of one image in place; `numbers` (m,) are theirs, `mixes` (m, ...) as above."""
        shares, boxes = mixes["mix_share"].tolist(), mixes["mix_box"].tolist()
        for at, crop in enumerate(crops):
            if shares[at] == 1:
                continue
            row = int(mixes["mix_image"][at])
            image = self._image(row)
            if image is None:
                raise RejectedInput(
                    f"{self._keys[row]}: its crops are mixed into others and it cannot be decoded any more"
                )
            todo: Operations = ()
            if self._augmentation is not None:
                (todo,) = self._augmentation.operations(self._keys[row], [int(numbers[at])])
            partner = replay(
                image,
                mixes["mix_from"][at],
                bool(mixes["mix_flip"][at]),
                crop.shape[-1],
                interpolation,
                operations=todo,
            )
            mix_pixels(crop, partner, shares[at], boxes[at], self._law.settings.side)

    def _partner(self, row: int) -> Partner | None:
        if self._store.bad[row]:
            return None
        if self._sizes[row, 0] == UNKNOWN:
            # decoded, and not only looked at: a header does not say whether the rest is there
            image = self._image(row)
            self._sizes[row] = (0, 0) if image is None else image.shape[1:]
        height, width = self._sizes[row].tolist()
        return (self._keys[row], height, width) if height else None

    def _image(self, row: int) -> torch.Tensor | None:
        """Pixels of an image; None where it cannot be decoded, or where a merged store has no image at that row."""
        if self._store.free[row]:
            return None
        with self._lock:
            if row in self._decoded:
                self._decoded.move_to_end(row)
                return self._decoded[row]
        file = self._images.file(self._keys[row])
        pixels = None
        try:
            data = file.read_bytes()
        except OSError as error:
            # an I/O error is no reason to choose another partner: mixtures must not depend on transient errors
            raise StorageError(
                f"cannot read {file}: {error.strerror}: crops of other images are mixed with it"
            ) from error
        if self._store.image_digest(row) not in (None, digest(data)):
            raise RejectedInput(
                f"{file} changed since the store was made: restore the file, or make a new store"
            )
        try:
            pixels = decode(data, str(file))
        except RejectedInput:
            pixels = None
        with self._lock:
            self._decoded[row] = pixels
            while len(self._decoded) > IMAGES_KEPT:
                self._decoded.popitem(last=False)
        return pixels

    def _shard(self, block: int, shard: int) -> Mixes:
        with self._lock:
            if (block, shard) not in self._stored:
                layout = self._group.layout
                per = layout.columns_per_shard
                columns = range(shard * per, (shard + 1) * per)
                self._stored[block, shard] = {
                    field.name: self._group.read(block, columns, field.name) for field in MIX_FIELDS
                }
                while len(self._stored) > SHARDS_KEPT:
                    self._stored.popitem(last=False)
            return self._stored[block, shard]


def mixed_crops(store: Store, plan: PlanRow, images: ImageSource) -> MixedCrops | None:
    """The mixtures of a plan; None where it has none that are drawn."""
    return None if planned_mixing(plan.parameters) is None else MixedCrops(store, plan, images)


def _unmixed(row: int, boxes: NDArray[np.uint16], flips: NDArray[np.bool_]) -> Mixes:
    count = len(boxes)
    return {
        "mix_image": np.full(count, row, np.uint32),
        "mix_from": boxes.astype(np.uint16),
        "mix_flip": flips.astype(np.uint8),
        "mix_share": np.ones(count, np.float32),
        "mix_box": np.zeros((count, 4), np.uint16),
    }
