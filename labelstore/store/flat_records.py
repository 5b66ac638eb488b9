"""Flat records: one fixed-size record per crop with its label as stored, box and flip.

A record has the codec's own fields, so that its label is recovered at any temperature by the codec that wrote it. Only
class ids are looked up first: a rank would need its image's table. What a codec keeps per image (label maps, tables of
tails) is in records of its own, one per image and crop shard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs import codec_from_record
from labelstore.codecs.base import Field, LabelCodec
from labelstore.codecs.class_ids import decode_ids, id_fields
from labelstore.store.layout import BOX, FLIP

if TYPE_CHECKING:
    from labelstore.store.label_set import LabelSet

Records = NDArray[np.void]

CROPS_TOGETHER = 1 << 14
"""Records filled field by field at a time: half a megabyte, which stays in a core's cache."""
SHORT_ROW = 64
"""Up to so many values a row is copied value by value for all crops, which NumPy does faster than row by row."""


@dataclass(frozen=True, kw_only=True)
class RecordForm:
    """What the records of a label set hold."""

    codec: LabelCodec
    """Decodes records: the label set's, with plain class ids."""
    stored: tuple[str, ...]
    """Arrays of the label set that records of crops are made from."""
    per_crop: tuple[Field, ...]
    per_image: tuple[Field, ...]
    ranked: bool
    """Whether class ids are stored as ranks in a table of each image's classes."""

    @classmethod
    def of(cls, labels: LabelSet) -> Self:
        """The form of a label set's records."""
        record, classes = labels.codec.to_record(), labels.num_classes
        ranked = record.get("class_ids") == "table"
        codec = codec_from_record({**record, "class_ids": "plain"}) if ranked else labels.codec
        fields = codec.fields(classes)
        per_image = tuple(field for field in fields if field.per == "image")
        apart = {field.name for field in per_image}
        return cls(
            codec=codec,
            stored=tuple(f.name for f in labels.codec.fields(classes) if f.name not in apart),
            per_crop=tuple(field for field in fields if field.per == "crop"),
            per_image=per_image,
            ranked=ranked,
        )

    @cached_property
    def dtype(self) -> np.dtype[np.void]:
        """One crop: its label's fields, `box` and `flip`; packed."""
        return _dtype((*self.per_crop, BOX, FLIP))

    @cached_property
    def image_dtype(self) -> np.dtype[np.void]:
        """One image in one crop shard; empty where nothing is kept per image."""
        return _dtype(self.per_image)

    def crop_records(self, labels: LabelSet, block: int, columns: range | None = None) -> Records:
        """Records (n, m) of the crops of one image block, read from the store."""
        per, layout = labels.plan.crops_per_chunk, labels.layout
        columns = range(layout.num_columns) if columns is None else columns
        records = np.empty((len(layout.rows(block)), len(columns) * per), self.dtype)
        if self.stored:
            start = 0
            group = labels.group
            for part in group.parts(block, columns, self.stored, stored_order=True):
                width = next(
                    array.shape[1] for n, array in part.items() if n not in group.per_image
                )
                self._fill(records[:, start : start + width], part, labels.num_classes)
                start += width
        start = 0
        for boxes, flips in labels.crop_parts(block, columns):
            inside = records[:, start : start + boxes.shape[1]]
            _copy(inside["box"], boxes)
            inside["flip"] = flips
            start += boxes.shape[1]
        return records

    def image_records(self, labels: LabelSet, block: int) -> Records:
        """Records (n, crop shards) of what is kept per image in one image block; (n, 1) of label maps."""
        layout, names = labels.group.layout, [field.name for field in self.per_image]
        records = np.empty((len(layout.rows(block)), layout.num_crop_shards), self.image_dtype)
        for shard in range(layout.num_crop_shards):
            first = shard * layout.columns_per_shard
            (part,) = labels.group.parts(block, range(first, first + 1), names)
            for name in names:
                records[name][:, shard] = part[name]
        return records

    def _fill(self, records: Records, part: Mapping[str, NDArray[Any]], num_classes: int) -> None:
        step = max(1, CROPS_TOGETHER // records.shape[1])
        for first in range(0, len(records), step):
            images = slice(first, first + step)
            for field in self.per_crop:
                target = records[field.name][images]
                if self.ranked and field.name == "class_id":
                    _look_up(target, part, images, num_classes)
                else:
                    _copy(target, part[field.name][images])


def opaque(records: NDArray[Any]) -> NDArray[Any]:
    """The same records as bytes without fields: NumPy moves those whole, ten times faster than by field."""
    return records.view(np.dtype((np.void, records.dtype.itemsize)))


def _dtype(fields: tuple[Field, ...]) -> np.dtype[np.void]:
    return np.dtype([(field.name, field.dtype, field.shape) for field in fields])


def _look_up(
    target: NDArray[Any], part: Mapping[str, NDArray[Any]], images: slice, num_classes: int
) -> None:
    """Class ids (n, m, K) of ranks, one rank of all crops at a time."""
    kept = target.shape[-1]
    fields = id_fields("table", kept, num_classes)
    for rank in range(kept):
        one = {
            f.name: part[f.name][images][..., rank : rank + 1]
            if f.per == "crop"
            else part[f.name][images]
            for f in fields
        }
        target[..., rank] = decode_ids(one, "table")[..., 0]


def _copy(target: NDArray[Any], source: NDArray[Any]) -> None:
    """target[...] = source, (n, m, ...) each, whose row axes may come first in memory."""
    row = target.shape[2:]
    if prod(row) > SHORT_ROW:
        target[...] = source
        return
    for place in np.ndindex(*row):
        target[(..., *place)] = source[(..., *place)]
