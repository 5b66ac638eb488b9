"""Passes without a store: fresh random crops, labelled with the image's class (the papers' baseline).

Position t is crop t of the plan (or `first_crop` + t), so that no crop ever comes twice; labels are smoothed as
torch.nn.CrossEntropyLoss does: 1 - s + s / C at the class, s / C elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.arrays.reading_threads import for_each
from labelstore.calibration import Region
from labelstore.cropping.crop_plan import CropPlan, image_streams
from labelstore.errors import RejectedInput, UsageError
from labelstore.images import ImageSource, image_size
from trainer.label_tensors import ground_truth_labels
from trainer.loader.planes import PlaneWriter, Records, make_records, record_dtype
from trainer.loader.source import DrawCounts, ImageTable, PlaneSource
from trainer.sampler import PassSchedule

IMAGES_TOGETHER = 4096


class GroundTruthPasses(PlaneSource):
    """Every pass of a run on an image folder's own classes."""

    def __init__(
        self,
        plan: CropPlan,
        *,
        keys: Sequence[str],
        class_ids: NDArray[np.integer[Any]],
        sizes: NDArray[np.integer[Any]],
        num_classes: int,
        schedule: PassSchedule,
        label_smoothing: float = 0.0,
        first_crop: int = 0,
        scratch: Path | None = None,
        attach: Path | None = None,
        threads: int = 2,
    ) -> None:
        """`keys` (n,), `class_ids` (n,) and `sizes` (n, 2) as height and width: see `read_sizes`.

        `first_crop` M keeps them apart from the M crops that a store drew with the same seed.
        """
        if not len(keys) == len(class_ids) == len(sizes) or not len(keys):
            raise UsageError(
                f"{len(keys)} keys, {len(class_ids)} class ids, {len(sizes)} sizes: give one of each per image"
            )
        if not 0 <= label_smoothing <= 1:
            raise UsageError(f"label_smoothing={label_smoothing}: it must be within 0 and 1")
        truth = np.asarray(class_ids, np.int64)
        wrong = np.flatnonzero((truth < 0) | (truth >= num_classes))
        if len(wrong):
            raise RejectedInput(
                f"{keys[int(wrong[0])]}: class {truth[wrong[0]]} of {num_classes}; "
                "every image needs a ground truth"
            )
        self.plan, self.schedule, self.num_classes = plan, schedule, num_classes
        self.label_smoothing, self.first_crop, self.threads = label_smoothing, first_crop, threads
        self.table = ImageTable(
            images=np.arange(len(keys)),
            keys=list(keys),
            streams=image_streams(keys),
            sizes=np.asarray(sizes, np.int64),
            ground_truth=truth,
        )
        self.counts = DrawCounts(images=len(keys), left_out=0, repeating=0)
        self._set_up(record_dtype(1, num_classes), scratch=scratch, attach=attach)

    def _together(self, position: int) -> int:
        for pass_index in range(self.schedule.num_passes):
            positions = self.schedule.positions(pass_index)
            if position in positions:
                return positions.stop
        raise AssertionError(position)

    def _write(self, positions: range) -> None:
        with PlaneWriter(self.planes, positions) as writer:

            def lay_out(first: int) -> None:
                chosen = slice(first, first + IMAGES_TOGETHER)
                writer.write(first, self._records(chosen, positions).T)

            starts = range(0, len(self.table), IMAGES_TOGETHER)
            for_each(lay_out, starts, threads=self.threads, stop=self._stop)

    def _records(self, chosen: slice, positions: range) -> Records:
        """(images, positions) records."""
        truth = self.table.ground_truth[chosen]
        shape = (len(truth), len(positions))
        numbers = self.first_crop + np.arange(positions.start, positions.stop)
        crops = np.broadcast_to(numbers, shape)
        boxes, flips = self.plan.crops_of_images(
            self.table.streams[chosen], self.table.sizes[chosen], crops
        )
        labels = ground_truth_labels(
            np.broadcast_to(truth[:, None], shape), self.num_classes, self.label_smoothing
        )
        return make_records(
            self.planes.dtype,
            labels,
            boxes=boxes,
            flips=flips,
            regions=int(Region.IMPORTANT),
            crops=crops,
            further={},
        )


def read_sizes(folder: ImageSource, *, threads: int = 4) -> NDArray[np.int64]:
    """(n, 2) height and width of every image of a folder, from headers; RejectedInput for a broken one."""
    sizes = np.empty((len(folder), 2), np.int64)

    def read(image: int) -> None:
        sizes[image] = image_size(folder.file(folder.keys[image]))

    for_each(read, range(len(folder)), threads=threads)
    return sizes
