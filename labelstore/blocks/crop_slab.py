"""Columns of the crops of one image block, computed from as few arrays as the asked ones need, a slab at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cached_property
from itertools import islice
from math import prod
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from labelstore.blocks.columns import COLUMNS, Text
from labelstore.blocks.label_measures import (
    dense_entropy,
    ranked_above,
    sparse_entropy,
)
from labelstore.codecs.base import SparseLabels
from labelstore.codecs.class_ids import decode_ids, id_fields
from labelstore.errors import UsageError

if TYPE_CHECKING:
    from labelstore.store import LabelSet, Mask


REGION_NAMES = np.array(["TOO_HARD", "HARD", "IMPORTANT", "TOO_EASY"], object)
"""Names by region code."""
DECODING = frozenset({"ground_truth_probability", "entropy", "kept_mass", "agrees_top5"})
"""Columns that need whole labels: with one of them, the others of the labels cost nothing more."""


class CropSlab:
    """Columns (n, m) of n images of one block and the m crops of some chunk columns.

    `wanted` says which columns will be asked for; others can be, and may be read less cheaply. Values are
    read-only views where an image's fact stands for all its crops.
    """

    def __init__(
        self,
        labels: LabelSet,
        block: int,
        columns: range | None = None,
        *,
        mask: Mask | None = None,
        wanted: Collection[str] = (),
    ) -> None:
        self.labels, self.block, self.columns, self.mask = labels, block, columns, mask
        self.rows = labels.block_rows(block)
        per = labels.plan.crops_per_chunk
        asked = range(labels.layout.num_columns) if columns is None else columns
        self.crops = range(asked.start * per, asked.stop * per)
        self.shape = (len(self.rows), len(self.crops))
        self._decodes = not DECODING.isdisjoint(wanted)

    def __getitem__(self, name: str) -> NDArray[Any] | Text:
        """The column, (n, m): numbers, booleans, or text. Rows of images without labels hold no sense."""
        kind = COLUMNS[name].kind
        if kind == "text":
            return _TEXT[name](self)
        return np.broadcast_to(_VALUES[name](self), self.shape)

    # -- catalogue --------------------------------------------------------------------------------

    def fact(self, name: str) -> NDArray[Any]:
        """(n,) of a column of the images table."""
        facts = self.labels.store.image_columns[name]
        return facts[self.rows.start : self.rows.stop]

    @property
    def present(self) -> NDArray[np.bool_]:
        """(n,) True for images that have labels."""
        return self.labels.present[self.rows.start : self.rows.stop]

    @cached_property
    def _image_size(self) -> NDArray[np.int64]:
        """(2, n): height, width; 1 where it is not known, so that nothing is divided by zero."""
        sizes = np.stack([self.fact("height"), self.fact("width")]).astype(np.int64)
        return np.maximum(sizes, 1)

    @cached_property
    def _truth(self) -> NDArray[np.int64]:
        """(n, 1) output of the ground truth, -1 where there is none; RejectedInput where outputs are no classes."""
        return self.labels.true_output[self.rows.start : self.rows.stop].astype(np.int64)[:, None]

    # -- boxes ------------------------------------------------------------------------------------

    @cached_property
    def _crops(self) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        return self.labels.crops(self.block, self.columns)

    @cached_property
    def box(self) -> NDArray[np.int32]:
        """(n, m, 4): top, left, height, width in pixels."""
        plan = self.labels.plan
        if not plan.stored:
            return self._crops[0].astype(np.int32)
        group = self.labels.store.group(f"crops/{plan.name}")
        return group.read(self.block, self.columns, "box").astype(np.int32)

    def _flip(self) -> NDArray[np.bool_]:
        plan = self.labels.plan
        if not plan.stored:
            return self._crops[1]
        group = self.labels.store.group(f"crops/{plan.name}")
        return np.asarray(group.read(self.block, self.columns, "flip") == 1)

    def _area(self) -> NDArray[np.float32]:
        # by way of float64: a box of 65,000 pixels a side is more than 32 bits hold
        height, width = self._image_size.astype(np.float64)
        pixels = self.box[..., 2] * self.box[..., 3].astype(np.float64)
        return np.asarray(pixels / (height * width)[:, None], np.float32)

    def _centre(self, axis: int) -> NDArray[np.float32]:
        middle = self.box[..., axis] + self.box[..., axis + 2] / 2
        return np.asarray(middle / self._image_size[axis][:, None], np.float32)

    # -- labels -----------------------------------------------------------------------------------

    @cached_property
    def is_dense(self) -> bool:
        """Whether the codec keeps every class."""
        return self.labels.codec.kept(self.labels.num_classes) is None

    @cached_property
    def sparse(self) -> SparseLabels:
        """The recovered labels; only where the codec is not dense."""
        return self.labels.sparse(self.block, self.columns)

    @cached_property
    def dense(self) -> NDArray[np.float32]:
        """The recovered labels (n, m, C); only where the codec is dense."""
        return self.labels.dense(self.block, self.columns)

    @cached_property
    def max_probability(self) -> NDArray[np.float32]:
        """(n, m) largest probability."""
        if not self._decodes:
            return self.labels.max_probability(self.block, self.columns)
        if self.is_dense:
            largest: NDArray[np.float32] = self.dense.max(axis=-1)
            return largest
        return np.ascontiguousarray(self.sparse.probs[..., 0])

    @cached_property
    def truth_probability(self) -> NDArray[np.float32]:
        """(n, m) probability of the ground truth, NaN where there is none."""
        inside = np.maximum(self._truth, 0)
        if self.is_dense:
            found = np.take_along_axis(self.dense, inside[..., None], axis=-1)[..., 0]
        else:
            found = self.sparse.probability_of(inside)
        return np.where(self._truth < 0, np.float32(np.nan), found)

    @cached_property
    def top1_id(self) -> NDArray[np.int32]:
        """(n, m) the class of the largest probability, -1 where there is no label."""
        found = self._first_ids()
        found[~self.present] = -1
        return found

    def _first_ids(self) -> NDArray[np.int32]:
        if self.is_dense:
            return np.asarray(self.dense.argmax(axis=-1), np.int32)
        form = getattr(self.labels.codec, "class_ids", None)
        if self._decodes or form is None:
            return self.sparse.class_ids[..., 0].astype(np.int32)
        # ids alone, and of them only the first: the other ranks are not looked up
        kept, classes = self.labels.codec.kept(self.labels.num_classes), self.labels.num_classes
        fields = id_fields(form, int(kept or 1), classes)
        group = self.labels.store.group(f"labels/{self.labels.name}")
        parts = [
            decode_ids(
                {
                    f.name: part[f.name][..., :1] if f.per == "crop" else part[f.name]
                    for f in fields
                },
                form,
            )[..., 0]
            for part in group.parts(self.block, self.columns, [f.name for f in fields])
        ]
        return np.concatenate(parts, axis=1).astype(np.int32)

    def _entropy(self) -> NDArray[np.float32]:
        if self.is_dense:
            return dense_entropy(self.dense)
        return sparse_entropy(self.sparse, self.labels.num_classes)

    def _kept_mass(self) -> NDArray[np.float32]:
        if self.is_dense:
            return np.ones(self.shape, np.float32)
        mass: NDArray[np.float32] = self.sparse.probs.sum(axis=-1)
        return mass

    def _agrees_top5(self) -> NDArray[np.bool_]:
        if self.is_dense:
            above = ranked_above(self.dense, np.maximum(self._truth, 0))
            return (above < 5) & (self._truth >= 0)
        kept = self.labels.listed
        if kept is not None and kept < min(5, self.labels.num_classes):
            raise UsageError(
                f"column 'agrees_top5' of label set {self.labels.name}: it keeps {kept} classes, five are needed"
            )
        listed: NDArray[np.bool_] = (self.sparse.class_ids[..., :5] == self._truth[..., None]).any(
            -1
        )
        return listed & (self._truth >= 0)

    # -- text -------------------------------------------------------------------------------------

    def _key(self) -> Text:
        codes = np.arange(len(self.rows), dtype=np.int32)[:, None]
        return Text(codes=np.broadcast_to(codes, self.shape), names=self.fact("key"))

    def _class(self, column: str) -> Text:
        codes = self.fact("class_id").astype(np.int32)[:, None]
        return Text(codes=np.broadcast_to(codes, self.shape), names=names_of(self.labels, column))

    def _top1(self, column: str) -> Text:
        return Text(codes=self.top1_id, names=names_of(self.labels, column))

    def _region(self) -> Text:
        if self.mask is None:
            raise UsageError("column 'region' needs a mask: name one with `mask`")
        if self.block not in self.mask.blocks:
            return Text(codes=np.full(self.shape, -1, np.int32), names=REGION_NAMES)
        codes = self.mask.regions(self.block, self.columns).astype(np.int32)
        codes[codes >= len(REGION_NAMES)] = -1
        return Text(codes=codes, names=REGION_NAMES)


def names_of(labels: LabelSet, column: str) -> NDArray[Any]:
    """The names that a text column may have, (number,) object; none for `key`, which differ by block.

    Outputs that are classes of the data set have its names, and the others their numbers; `class_name` and
    `top1_name` say in words for people what they are.
    """
    if column == "region":
        return REGION_NAMES
    if column == "key":
        return np.empty(0, object)
    names = {
        "class": lambda: labels.store.class_names,
        "class_name": lambda: labels.class_titles,
        "top1": lambda: labels.output_names,
        "top1_name": lambda: labels.output_titles,
    }
    return np.array(names[column](), object)


_VALUES: dict[str, Callable[[CropSlab], NDArray[Any]]] = {
    "image": lambda slab: np.arange(slab.rows.start, slab.rows.stop, dtype=np.int32)[:, None],
    "class_id": lambda slab: slab.fact("class_id").astype(np.int32)[:, None],
    "image_height": lambda slab: slab.fact("height").astype(np.int32)[:, None],
    "image_width": lambda slab: slab.fact("width").astype(np.int32)[:, None],
    "crop": lambda slab: np.arange(slab.crops.start, slab.crops.stop, dtype=np.int32)[None],
    "top": lambda slab: slab.box[..., 0],
    "left": lambda slab: slab.box[..., 1],
    "height": lambda slab: slab.box[..., 2],
    "width": lambda slab: slab.box[..., 3],
    "flip": CropSlab._flip,
    "area": CropSlab._area,
    "aspect": lambda slab: (slab.box[..., 3] / np.maximum(slab.box[..., 2], 1)).astype(np.float32),
    "centre_y": lambda slab: slab._centre(0),
    "centre_x": lambda slab: slab._centre(1),
    "max_probability": lambda slab: slab.max_probability,
    "ground_truth_probability": lambda slab: slab.truth_probability,
    "entropy": CropSlab._entropy,
    "kept_mass": CropSlab._kept_mass,
    "top1_id": lambda slab: slab.top1_id,
    "agrees": lambda slab: (slab.top1_id == slab._truth) & (slab._truth >= 0),
    "agrees_top5": CropSlab._agrees_top5,
}
_TEXT: dict[str, Callable[[CropSlab], Text]] = {
    "key": CropSlab._key,
    "class": lambda slab: slab._class("class"),
    "class_name": lambda slab: slab._class("class_name"),
    "top1": lambda slab: slab._top1("top1"),
    "top1_name": lambda slab: slab._top1("top1_name"),
    "region": CropSlab._region,
}


SLAB_VALUES = 1 << 23
"""Values decoded at once: 32 MB as float32, with copies about 200 MB."""


def slabs(labels: LabelSet, columns: range | None = None) -> tuple[range | None, ...]:
    """The chunk columns to ask for in turn: (None,) where a whole block fits, else ranges of them.

    Every block of a label set is walked the same way. Wide labels (`full`, C = 1000) come one chunk
    column at a time, or a few. With `columns`, only these are asked for.
    """
    layout = labels.layout
    fields = labels.codec.fields(labels.num_classes)
    if labels.codec.takes == "map":
        # a crop's label may list every class of the map
        width = min(max(prod(field.shape) for field in fields), labels.num_classes)
    else:
        width = max(prod(field.shape) for field in fields if field.per == "crop")
        # with an image's tail a recovered label lists more than a crop stores
        width = max(width, labels.codec.kept(labels.num_classes) or 0)
    column = layout.images_per_shard * layout.crops_per_chunk * width
    together = max(1, SLAB_VALUES // column)
    if columns is None and together >= layout.num_columns:
        return (None,)
    wanted = range(layout.num_columns) if columns is None else columns
    return tuple(wanted[at : at + together] for at in range(0, len(wanted), together))


T = TypeVar("T")


def in_order(
    submit: Callable[[T], Any], result: Callable[[Any], Any], items: Iterable[T], window: int
) -> Iterator[Any]:
    """`result(submit(item))` for every item, `window` of them submitted ahead.

    When the iterator is dropped, the last futures stay: the caller cancels them.
    """
    waiting = iter(items)
    running = deque(submit(item) for item in islice(waiting, window))
    while running:
        found = result(running.popleft())
        running.extend(submit(item) for item in islice(waiting, 1))
        yield found
