"""One leased image block on its way from crops to a commit."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.catalogue.records import Lease, PlanRow
from labelstore.codecs import missing_labels
from labelstore.codecs.base import LabelCodec, MapTopK, TopK
from labelstore.codecs.topk import id_dtype, missing_id
from labelstore.commit.spool import LabelledImage, Spool
from labelstore.commit.staging import BlockArrays, ImageFacts
from labelstore.labelling.crop_batches import OpenedImage
from labelstore.store.layout import plan_fields


@dataclass(kw_only=True)
class ImageBlock:
    """Labels of a block's images as they come in, image by image."""

    lease: Lease
    rows: range
    """All image rows of the block."""
    num_crops: int
    """M."""
    missing: Sequence[int]
    """Crop shards that are not committed, ascending; all of them unless the plan has grown."""
    crops_per_shard: int
    spool: Spool
    pending: set[int]
    """Image rows that still wait for labels."""
    done: dict[int, LabelledImage] = field(default_factory=dict)
    bad: dict[int, str] = field(default_factory=dict)
    """Left out, now or in an earlier session: image row -> reason."""
    _partial: dict[int, dict[str, NDArray[Any]]] = field(default_factory=dict)
    _seconds: dict[int, float] = field(default_factory=dict)

    @property
    def first_crop(self) -> int:
        """Crops from here on are labelled."""
        return self.missing[0] * self.crops_per_shard

    @property
    def num_new(self) -> int:
        """Crops of each image that are labelled."""
        return self.num_crops - self.first_crop

    def take(self, found: Mapping[int, LabelledImage]) -> int:
        """Take images that an earlier lease finished; returns how many.

        What was labelled for another range of crops, before the plan grew, is of no use.
        """
        usable = {
            image: labelled
            for image, labelled in found.items()
            if image in self.pending
            and (labelled.first_crop, len(labelled.arrays["box"]))
            == (self.first_crop, self.num_new)
        }
        self.done |= usable
        self.pending -= usable.keys()
        return len(usable)

    @property
    def is_complete(self) -> bool:
        """True when every image has labels or was left out."""
        return not self.pending

    @property
    def seconds(self) -> float:
        """Spent on the images that have labels, by whoever labelled them."""
        return sum(labelled.seconds for labelled in self.done.values())

    def add(
        self,
        opened: OpenedImage,
        first: int,
        last: int,
        labels: Mapping[str, NDArray[Any]],
        seconds: float,
    ) -> bool:
        """Take the labels of crops [first, last) of one image; True when that was its last crop."""
        image = opened.job.image
        self._seconds[image] = self._seconds.get(image, 0.0) + seconds
        arrays = self._partial.setdefault(image, {})
        for name, values in labels.items():
            if name not in arrays:
                arrays[name] = np.empty((self.num_new, *values.shape[1:]), values.dtype)
            arrays[name][first - self.first_crop : last - self.first_crop] = values
        if last < self.num_crops:
            return False
        assert opened.boxes is not None
        assert opened.flips is not None
        del self._partial[image]
        finished = LabelledImage(
            image=image,
            height=opened.height,
            width=opened.width,
            digest=opened.digest,
            arrays={
                "box": opened.boxes[self.first_crop :],
                "flip": opened.flips[self.first_crop :],
                **{n: values[self.first_crop :] for n, values in (opened.mixes or {}).items()},
                **arrays,
            },
            first_crop=self.first_crop,
            seconds=self._seconds.pop(image),
        )
        self.spool.append(finished)
        self.done[image] = finished
        self.pending.discard(image)
        return True

    def leave_out(self, image: int, reason: str) -> None:
        """Record an image that cannot be used."""
        self.bad[image] = reason
        self.pending.discard(image)
        self._partial.pop(image, None)

    def facts(self) -> ImageFacts:
        """What decoding taught, for the images table."""
        decoded = [(i.image, i.width, i.height, i.digest) for i in self.done.values()]
        return ImageFacts(decoded=sorted(decoded), bad=self.bad)

    def labels(self, crops: slice) -> TopK | MapTopK | NDArray[np.float32]:
        """Teacher labels of all images and the asked crops: (n, m, K) as TopK, or dense (n, m, C).

        Outputs before softmax are dense too; maps are (n, H, W, K), of the one crop that is the whole image.
        Images without labels are NaN.
        """
        some = next(iter(self.done.values()), None)
        if some is not None and "logits" in some.arrays:
            shape = some.arrays["logits"].shape[1:]
            logits = self._gather("logits", crops, shape, np.dtype(np.float32), np.nan)
            if "class_ids" not in some.arrays:
                return logits
            ids = some.arrays["class_ids"].dtype
            classes = self._gather("class_ids", crops, shape, ids, missing_id(ids))
            return MapTopK(class_ids=classes[:, 0], logits=logits[:, 0])
        if some is None or "class_ids" in some.arrays:
            k = 1 if some is None else some.arrays["class_ids"].shape[-1]
            ids = id_dtype(1) if some is None else some.arrays["class_ids"].dtype
            return TopK(
                class_ids=self._gather("class_ids", crops, (k,), ids, missing_id(ids)),
                probs=self._gather("probs", crops, (k,), np.dtype(np.float32), np.nan),
                tail=self._gather("tail", crops, (), np.dtype(np.float32), np.nan),
            )
        width = some.arrays["probs"].shape[-1]
        return self._gather("probs", crops, (width,), np.dtype(np.float32), np.nan)

    def label_arrays(self, name: str, codec: LabelCodec, num_classes: int) -> list[BlockArrays]:
        """The label set's shards of this block, encoded."""
        shards = []
        for crop_shard, crops in self.crop_shards():
            count = crops.stop - crops.start
            labels = (
                self.labels(crops)
                if self.done
                else missing_labels(codec, len(self.rows), count, num_classes)
            )
            arrays = codec.encode(labels, num_classes)
            shards.append(BlockArrays(group=f"labels/{name}", crop_shard=crop_shard, arrays=arrays))
        return shards

    def crop_arrays(self, plan: PlanRow) -> list[BlockArrays]:
        """The crop plan's shards of this block: boxes, flips, and what crops are mixed with."""
        return [
            BlockArrays(
                group=f"crops/{plan.name}",
                crop_shard=crop_shard,
                arrays={
                    field.name: self._gather(
                        field.name, crops, field.shape, np.dtype(field.dtype), field.fill
                    )
                    for field in plan_fields(plan.parameters)
                },
            )
            for crop_shard, crops in self.crop_shards()
        ]

    def crop_shards(self) -> list[tuple[int, slice]]:
        """(crop shard, its crops) of everything that is missing."""
        per = self.crops_per_shard
        return [(i, slice(i * per, (i + 1) * per)) for i in self.missing]

    def _gather(
        self, name: str, crops: slice, row: tuple[int, ...], dtype: np.dtype[Any], fill: float
    ) -> NDArray[Any]:
        out = np.full((len(self.rows), crops.stop - crops.start, *row), fill, dtype)
        inside = slice(crops.start - self.first_crop, crops.stop - self.first_crop)
        for image, labelled in self.done.items():
            out[image - self.rows.start] = labelled.arrays[name][inside]
        return out


class Stopwatch:
    """Seconds since it was last read."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds
