"""Audit of label maps: the teacher's dense head sees the whole image again, and crops are pooled from both maps.

The fresh map goes through the codec on the classes that each stored cell keeps, so that a tie at rank K is none; how
much more probable another class is than one that a cell keeps counts as a difference of the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from labelstore.care.relabelling import Relabeller
from labelstore.codecs.base import LabelCodec, MapTopK
from labelstore.cropping.device_decoding import crops_on_device
from labelstore.cropping.replay import replay
from labelstore.errors import RejectedInput
from labelstore.images import digest
from labelstore.store import LabelSet


@dataclass(frozen=True, kw_only=True)
class DrawnCrops:
    """Crops drawn from one chunk."""

    block: int
    column: int
    rows: NDArray[np.int64]
    """(s,) image rows."""
    offsets: NDArray[np.int64]
    """(s,) crops within the chunk column."""
    first_crop: int

    @property
    def columns(self) -> range:
        """The chunk column as a range."""
        return range(self.column, self.column + 1)


@dataclass(frozen=True, kw_only=True)
class StoredMaps:
    """Labels of the drawn crops as they are pooled from stored maps."""

    class_ids: NDArray[Any]
    """(u, H, W, K) of the maps of the drawn images."""
    image: NDArray[np.int64]
    """(s,) which of these a drawn crop is of."""
    boxes: NDArray[np.float32]
    """(s, 1, 4) in shares of the image."""
    probs: NDArray[np.float32]
    """(s, C)."""
    num_classes: int

    @classmethod
    def of(cls, labels: LabelSet, cell: DrawnCrops) -> StoredMaps:
        """Return the stored labels of the crops of one cell."""
        first = labels.block_rows(cell.block).start
        at = (cell.rows - first, cell.offsets)
        images, image = np.unique(cell.rows, return_inverse=True)
        boxes, _ = labels.crops(cell.block, cell.columns)
        facts = labels.store.image_columns
        height, width = facts["height"][cell.rows], facts["width"][cell.rows]
        size = np.stack([height, width, height, width], axis=1)
        group = labels.store.group(f"labels/{labels.name}")
        (maps,) = group.parts(cell.block, None, ["map_class"])
        return cls(
            class_ids=maps["map_class"][images - first],
            image=image.reshape(-1),
            boxes=(boxes[at] / size).astype(np.float32)[:, None],
            probs=labels.dense(cell.block, cell.columns)[at],
            num_classes=labels.num_classes,
        )

    def through(self, codec: LabelCodec, fresh: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fresh maps (u, H, W, C) as the codec gives back the drawn crops' labels, (s, C)."""
        logits = np.take_along_axis(fresh, self._ids, axis=-1)
        order = np.argsort(-logits, axis=-1, kind="stable")
        maps = MapTopK(
            class_ids=np.take_along_axis(self.class_ids, order, axis=-1),
            logits=np.take_along_axis(logits, order, axis=-1),
        )
        arrays = codec.encode(maps, self.num_classes)
        crops = {name: values[self.image] for name, values in arrays.items()}
        return codec.recover({**crops, "box": self.boxes}, self.num_classes)[:, 0]

    @property
    def top1(self) -> NDArray[np.int64]:
        """(s,) class with the largest probability."""
        first: NDArray[np.int64] = self.probs.argmax(1)
        return first

    def fresh_top1(self, fresh: NDArray[np.float32]) -> NDArray[np.int64]:
        """(s,) class that the teacher finds in the whole image now."""
        first: NDArray[np.int64] = fresh.mean(axis=(1, 2)).argmax(1)[self.image]
        return first

    def overlooked(self, fresh: NDArray[np.float32]) -> NDArray[np.float32]:
        """(s,) how much more probable a class that a cell does not keep is than one that it keeps, at most."""
        probs = np.exp(fresh - fresh.max(axis=-1, keepdims=True))
        probs /= probs.sum(axis=-1, keepdims=True)
        least = np.take_along_axis(probs, self._ids, axis=-1).min(axis=-1)
        np.put_along_axis(probs, self._ids, 0.0, axis=-1)
        gap = np.asarray(np.maximum(probs.max(axis=-1) - least, 0).max(axis=(1, 2)), np.float32)
        return gap[self.image]

    @property
    def _ids(self) -> NDArray[np.int64]:
        ids: NDArray[np.int64] = np.minimum(self.class_ids, self.num_classes - 1).astype(np.int64)
        return ids


def fresh_maps(asker: Relabeller, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """(u, H, W, C) outputs of the dense head for the u images of these rows, ascending."""
    images = np.unique(rows)
    size, interpolation = (
        asker.labelling.teacher.row.input_size,
        asker.labelling.teacher.row.interpolation,
    )
    shape = (len(images), 3, size, size)
    pixels = torch.empty(shape, dtype=torch.uint8, device=asker.labelling.crop_device)
    flip = np.zeros(1, bool)
    for place, image in enumerate(images.tolist()):
        decoded = decoded_image(asker, image)
        box = np.array([[0, 0, *decoded.shape[-2:]]], np.uint16)
        if asker.labelling.crop_device is None:
            replay(decoded, box[0], False, size, interpolation, pixels[place])
        else:
            here = pixels[place : place + 1]
            crops_on_device(decoded.to(asker.labelling.crop_device), box, flip, interpolation, here)
    parts = [
        asker.labelling.labeller.logits(pixels[start : start + asker.labelling.options.batch_size])
        .cpu()
        .numpy()
        for start in range(0, len(pixels), asker.labelling.options.batch_size)
    ]
    return np.concatenate(parts)


def decoded_image(asker: Relabeller, image: int) -> torch.Tensor:
    """An image's pixels; RejectedInput where its file is not the one that was labelled."""
    path = asker.labelling.images.file(str(asker.store.image_columns["key"][image]))
    data = path.read_bytes()
    if asker.store.image_digest(image) not in (None, digest(data)):
        raise RejectedInput(
            f"{path} changed since it was labelled: its labels cannot be audited with it"
        )
    return asker.labelling.decode(data, str(path))
