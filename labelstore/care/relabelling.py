"""One shard again: the teacher's labels of some crops of one image block, decoded and asked anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from labelstore.catalogue.records import LabelSetRow, ShardRow
from labelstore.codecs import codec_from_record, is_map, missing_labels
from labelstore.codecs.base import MapTopK, TopK
from labelstore.codecs.topk import missing_id
from labelstore.cropping.crop_augmentation import planned_augmentation
from labelstore.errors import ConflictError, RejectedInput
from labelstore.images import ImageSource
from labelstore.labelling.crop_batches import ImageJob, OpenedImage, TeacherBatches
from labelstore.labelling.device_crops import check_crop_device
from labelstore.labelling.label_facts import facts_for
from labelstore.labelling.mixed_crops import mixed_crops
from labelstore.labelling.whole_images import WholeImages
from labelstore.store import Store
from labelstore.store.layout import label_layout
from labelstore.teachers.dense_head import with_dense_head
from labelstore.teachers.labeller import Autocast, Labeller
from labelstore.teachers.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Relabeller:
    """Makes the arrays of a label set's shards from the images, as they were made the first time."""

    store: Store
    row: LabelSetRow
    folder: ImageSource
    teacher: Teacher
    """With the preprocessing that the store recorded."""
    labeller: Labeller
    crop_device: torch.device | None
    """Where crops are made; None: on the CPU."""
    batch_size: int
    workers: int

    @classmethod
    def of(
        cls,
        store: Store,
        row: LabelSetRow,
        folder: ImageSource,
        teacher: Teacher,
        *,
        class_map: str | None,
        batch_size: int,
        device: str | None,
        autocast: Autocast | None,
        workers: int,
    ) -> Relabeller:
        """ConflictError unless these are the weights that made the labels.

        Class map, autocast and crop device are as the label set recorded them where they are not given.
        """
        held = store.teacher(row.teacher)
        if teacher.row.digest != held.digest:
            raise ConflictError(
                f"label set {row.name} was made by weights {held.digest[:12]} ({held.source}), "
                f"{teacher.row.source} has {teacher.row.digest[:12]}: give the same with --teacher"
            )
        codec = codec_from_record(row.codec)
        teacher = Teacher(module=teacher.module, row=held, class_names=teacher.class_names)
        facts = facts_for(
            store, row, teacher, codec, images=folder, class_map=class_map, autocast=autocast
        )
        check_crop_device(facts.crop_device, held.interpolation)
        teacher, _ = with_dense_head(teacher, codec)
        labeller = Labeller(
            teacher,
            codec.kept(row.num_classes),
            device=device,
            autocast=facts.autocast,
            temperature=row.temperature,
            class_map=facts.outputs,
            takes=codec.takes,
        )
        return cls(
            store=store,
            row=row,
            folder=folder,
            teacher=teacher,
            labeller=labeller,
            crop_device=None if facts.crop_device == "cpu" else labeller.device,
            batch_size=batch_size,
            workers=workers,
        )

    def arrays(
        self, shard: ShardRow, alive: Callable[[], object] = lambda: None
    ) -> dict[str, NDArray[Any]]:
        """The shard's arrays by field. RejectedInput for an image that is missing or has changed.

        `alive` is called after every batch, and may raise.
        """
        plan = self.store.plan(self.row.plan)
        layout = label_layout(self.row, plan, self.store.num_rows)
        rows = layout.rows(shard.block)
        first = shard.crop_shard * layout.crops_per_shard
        keys, bad = self.store.image_columns["key"], self.store.bad
        batches = TeacherBatches(
            [
                ImageJob(image=i, key=keys[i], path=self.folder.file(keys[i]), first_crop=first)
                for i in rows
                if not bad[i]
            ],
            WholeImages() if is_map(self.row.codec) else self.store.planned_crops(plan.name),
            num_crops=first + layout.crops_per_shard,
            batch_size=self.batch_size,
            input_size=self.teacher.row.input_size,
            interpolation=self.teacher.row.interpolation,
            workers=self.workers,
            check=self._check_unchanged,
            crop_device=self.crop_device,
            augmentation=planned_augmentation(plan.parameters),
            mixed=mixed_crops(self.store, plan, self.folder),
        )
        found: dict[str, NDArray[Any]] = {}
        for batch in batches:
            labels = self.labeller(batch.pixels[: batch.size])
            for segment in batch.segments:
                opened = segment.opened.result()
                if opened.bad is not None:
                    raise RejectedInput(f"{opened.bad}: its labels cannot be made again")
                part = slice(segment.at, segment.at + segment.last - segment.first)
                for name, values in labels.items():
                    if name not in found:
                        found[name] = _missing(values, (len(rows), layout.crops_per_shard))
                    at = slice(segment.first - first, segment.last - first)
                    found[name][opened.job.image - rows.start, at] = values[part]
            alive()
        return self._encoded(found, (len(rows), layout.crops_per_shard))

    def _encoded(
        self, found: dict[str, NDArray[Any]], shape: tuple[int, int]
    ) -> dict[str, NDArray[Any]]:
        codec = codec_from_record(self.row.codec)
        labels: TopK | MapTopK | NDArray[np.float32]
        if not found:  # every image of the block was left out
            labels = missing_labels(codec, *shape, self.row.num_classes)
        elif codec.takes == "map":
            labels = MapTopK(class_ids=found["class_ids"][:, 0], logits=found["logits"][:, 0])
        elif len(found) == 1:
            (labels,) = found.values()
        else:
            labels = TopK(**found)
        return codec.encode(labels, self.row.num_classes)

    def _check_unchanged(self, opened: OpenedImage) -> None:
        if self.store.image_digest(opened.job.image) not in (None, opened.digest):
            raise RejectedInput(
                f"{opened.job.path} changed since the store was made: its labels cannot be made again from it"
            )


def _missing(like: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """An array (images, crops, ...) of the values that mark missing crops."""
    fill = np.nan if like.dtype.kind == "f" else missing_id(like.dtype)
    return np.full((*shape, *like.shape[1:]), fill, like.dtype)
