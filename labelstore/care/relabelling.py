"""Labels that are there already, made by their teacher again: for `repair`, and for `audit` to compare."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from labelstore.catalogue.records import LabelSetRow
from labelstore.codecs import codec_from_record
from labelstore.errors import ConflictError, RejectedInput
from labelstore.images import ImageSource
from labelstore.labelling.crop_batches import OpenedImage
from labelstore.labelling.generation_options import GenerationOptions
from labelstore.labelling.labelling import Labelling
from labelstore.labelling.teacher_blocks import ImageBlock
from labelstore.store import Store
from labelstore.store.layout import label_layout
from labelstore.teachers.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Relabeller:
    """A label set's teacher, which labels the images as it did the first time."""

    store: Store
    row: LabelSetRow
    labelling: Labelling

    @classmethod
    def of(
        cls,
        store: Store,
        row: LabelSetRow,
        images: ImageSource,
        teacher: Teacher,
        options: GenerationOptions,
    ) -> Relabeller:
        """ConflictError unless these are the weights that made the labels.

        Class map, autocast, crop device and decode device are as the label set recorded them where they are not given.
        """
        recorded = store.teacher(row.teacher)
        if teacher.row.digest != recorded.digest:
            raise ConflictError(
                f"label set {row.name} was made by weights {recorded.digest[:12]} ({recorded.source}), "
                f"{teacher.row.source} has {teacher.row.digest[:12]}: give the same with `teacher`"
            )
        # with the preprocessing that the store recorded
        teacher = Teacher(module=teacher.module, row=recorded, class_names=teacher.class_names)
        codec = codec_from_record(row.codec)
        labelling = Labelling.of(teacher, codec, options, images, store=store, row=row)
        return cls(store=store, row=row, labelling=labelling)

    def arrays(
        self, block: int, crop_shard: int, alive: Callable[[], object] = lambda: None
    ) -> dict[str, NDArray[Any]]:
        """One shard's arrays by field. RejectedInput for an image that is missing or has changed.

        `alive` is called after every batch, and may raise.
        """
        plan = self.store.plan(self.row.plan)
        layout = label_layout(self.row, plan, self.store.num_rows)
        rows = layout.rows(block)
        bad = self.store.bad
        made = ImageBlock(
            rows=rows,
            missing=[crop_shard],
            num_crops=(crop_shard + 1) * layout.crops_per_shard,
            crops_per_shard=layout.crops_per_shard,
            pending={i for i in rows if not bad[i]},
        )
        jobs = self.labelling.jobs(self.store, sorted(made.pending), made.first_crop)
        batches = self.labelling.label(
            self.store, plan, jobs, num_crops=made.num_crops, check=self._check_unchanged
        )
        with closing(batches):
            for batch in batches:
                for crops in batch:
                    if crops.opened.bad is not None:
                        raise RejectedInput(f"{crops.opened.bad}: its labels cannot be made again")
                    made.add(crops.opened, crops.first, crops.last, crops.labels)
                alive()
        codec = codec_from_record(self.row.codec)
        (shard,) = made.label_shards(self.row.name, codec, self.row.num_classes)
        return dict(shard.arrays)

    def _check_unchanged(self, opened: OpenedImage) -> None:
        if self.store.image_digest(opened.job.image) not in (None, opened.digest):
            raise RejectedInput(
                f"{opened.job.path} changed since the store was made: its labels cannot be made again from it"
            )
