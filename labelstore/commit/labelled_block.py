"""Labels and crops of one image block, put together image by image, and the crop shards that they become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from labelstore.catalogue.records import LabelSetRow, PlanRow
from labelstore.codecs import missing_labels
from labelstore.codecs.base import LabelCodec, MapTopK, TopK, id_dtype, missing_id
from labelstore.commit.label_set_rows import settled_codec
from labelstore.commit.spool import LabelledImage
from labelstore.commit.staging import BlockArrays, ImageFacts
from labelstore.store import Store
from labelstore.store.layout import plan_fields

Labels: TypeAlias = TopK | MapTopK | NDArray[np.float32]
"""What codecs encode: the K largest, those of a map, or a value for each class."""


@dataclass(kw_only=True)
class LabelledBlock:
    """One image block of a label set, held in memory until its shards are encoded whole."""

    rows: range
    """All image rows of the block."""
    missing: Sequence[int]
    """Crop shards that are not committed, ascending; all of them unless the plan has grown."""
    num_crops: int
    """M."""
    crops_per_shard: int
    done: dict[int, LabelledImage] = field(default_factory=dict)
    """Image row -> its labels, of the crops from `first_crop` on."""

    first_crop: int = field(init=False)
    """Crops from here on are labelled."""
    num_new: int = field(init=False)
    """Crops of each image that are labelled."""

    def __post_init__(self) -> None:
        self.first_crop = self.missing[0] * self.crops_per_shard
        self.num_new = self.num_crops - self.first_crop

    def facts(self, bad: Mapping[int, str]) -> ImageFacts:
        """Return what decoding found out, for the images table; `bad` are images to be left out, with the reason."""
        decoded = [(i.image, i.width, i.height, i.digest) for i in self.done.values()]
        return ImageFacts(decoded=sorted(decoded), bad=bad)

    def codec(self, store: Store, row: LabelSetRow) -> LabelCodec:
        """The label set's codec; its form of class ids is chosen on the first shard that any process commits.

        ConflictError where the label set was dropped meanwhile, or another one got its name.
        """

        def first() -> TopK | None:
            labels = self.labels(self._cut(self.missing[0]))
            assert isinstance(labels, TopK)
            return labels if self.done else None

        return settled_codec(store, row, first, uuid=row.uuid)

    def label_shards(self, name: str, codec: LabelCodec, num_classes: int) -> list[BlockArrays]:
        """The missing shards of label set `name`, encoded."""
        shards = []
        for crop_shard in self.missing:
            labels = (
                self.labels(self._cut(crop_shard))
                if self.done
                else missing_labels(codec, len(self.rows), self.crops_per_shard, num_classes)
            )
            arrays = codec.encode(labels, num_classes)
            shards.append(BlockArrays(group=f"labels/{name}", crop_shard=crop_shard, arrays=arrays))
        return shards

    def crop_shards(self, plan: PlanRow) -> list[BlockArrays]:
        """The crop plan's shards of this block: boxes, flips, and what crops are mixed with."""
        return [
            BlockArrays(
                group=f"crops/{plan.name}",
                crop_shard=crop_shard,
                arrays={
                    field.name: self._gather(
                        field.name,
                        self._cut(crop_shard),
                        field.shape,
                        np.dtype(field.dtype),
                        field.fill,
                    )
                    for field in plan_fields(plan.parameters)
                },
            )
            for crop_shard in self.missing
        ]

    def labels(self, crops: slice) -> Labels:
        """Labels of all images and the asked crops: (n, m, K) as TopK, or dense (n, m, C).

        Outputs before softmax are dense too; maps are (n, H, W, K), of the one crop that is the whole image.
        Images without labels are NaN.
        """
        some = next(iter(self.done.values()), None)
        floats = np.dtype(np.float32)
        if some is None or "class_ids" in some.arrays:
            ids = id_dtype(1) if some is None else some.arrays["class_ids"].dtype
            shape = (1,) if some is None else some.arrays["class_ids"].shape[1:]
            classes = self._gather("class_ids", crops, shape, ids, missing_id(ids))
            if some is not None and "logits" in some.arrays:
                logits = self._gather("logits", crops, shape, floats, np.nan)
                return MapTopK(class_ids=classes[:, 0], logits=logits[:, 0])
            return TopK(
                class_ids=classes,
                probs=self._gather("probs", crops, shape, floats, np.nan),
                tail=self._gather("tail", crops, (), floats, np.nan),
            )
        name = "logits" if "logits" in some.arrays else "probs"
        return self._gather(name, crops, some.arrays[name].shape[1:], floats, np.nan)

    def _cut(self, crop_shard: int) -> slice:
        return slice(crop_shard * self.crops_per_shard, (crop_shard + 1) * self.crops_per_shard)

    def _gather(
        self, name: str, crops: slice, row: tuple[int, ...], dtype: np.dtype[Any], fill: float
    ) -> NDArray[Any]:
        out = np.full((len(self.rows), crops.stop - crops.start, *row), fill, dtype)
        inside = slice(crops.start - self.first_crop, crops.stop - self.first_crop)
        for image, labelled in self.done.items():
            out[image - self.rows.start] = labelled.arrays[name][inside]
        return out


def arrays_of(labels: Labels, num_classes: int) -> dict[str, NDArray[Any]]:
    """One image's labels, m crops or a map (1, H, W, K), as `LabelledImage.arrays` keeps them."""
    if isinstance(labels, np.ndarray):
        return {"probs": labels}
    ids = labels.class_ids.astype(id_dtype(num_classes), copy=False)
    if isinstance(labels, MapTopK):
        return {"class_ids": ids, "logits": labels.logits}
    return {"class_ids": ids, "probs": labels.probs, "tail": labels.tail}
