"""One worker's share of a label set: images of leased blocks become crops, crops labels, and labels go to their blocks.

The teacher runs in a thread of its own, so that it sees the next batch while this one's labels are put where they
belong. What is leased, spooled and committed is in `leased_blocks`.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from labelstore.catalogue.records import PlanRow
from labelstore.codecs import is_map
from labelstore.commit.lease_keeper import Progress
from labelstore.cropping.crop_augmentation import planned_augmentation
from labelstore.devices import backend_of
from labelstore.errors import IncompleteError, RejectedInput
from labelstore.images import ImageSource
from labelstore.labelling.committed_files import check_committed_files
from labelstore.labelling.crop_batches import ImageJob, OpenedImage, TeacherBatch, TeacherBatches
from labelstore.labelling.image_block import ImageBlock, Stopwatch
from labelstore.labelling.leased_blocks import LeasedBlocks
from labelstore.labelling.mixed_crops import mixed_crops
from labelstore.labelling.whole_images import WholeImages
from labelstore.store import Store
from labelstore.store.layout import label_layout
from labelstore.teachers.labeller import Labeller
from labelstore.teachers.teacher import Teacher

POLL_SECONDS = 2.0
"""How often a worker with nothing to lease looks whether another one died."""


@dataclass(frozen=True, kw_only=True)
class GenerationReport:
    """What a call of `generate` found and did."""

    label_set: str
    num_images: int
    num_crops: int
    """Crops that this call labelled; 0 when everything was there."""
    already_committed: int
    """Crops that were committed before."""
    bad: dict[str, str]
    """Images left out: key -> reason."""
    seconds: float
    crops_per_second: float


@dataclass(kw_only=True)
class Worker:
    """One process at work on a label set; `run` returns when every block is committed, by whomever."""

    store: Store
    folder: ImageSource
    plan: PlanRow
    label_set: str
    uuid: str
    """Of the label set that the teacher was compared with: one that gets its name later is another."""
    labeller: Labeller
    teacher: Teacher
    num_classes: int
    batch_size: int
    threads: int
    """That decode and crop."""
    crop_device: torch.device | None
    """Where crops are made; None: on the CPU."""
    skip_bad: bool
    gone: frozenset[int]
    """Image rows that are left out because their images are not in the folder."""
    deadline: float | None
    """`time.monotonic()` at which to stop."""
    progress: Progress

    def __post_init__(self) -> None:
        row = self.store.label_set_row(self.label_set)
        self._layout = label_layout(row, self.plan, self.store.num_rows)
        self._is_map = is_map(row.codec)
        self._group = f"labels/{self.label_set}"
        self._blocks = LeasedBlocks(
            store=self.store,
            plan=self.plan,
            label_set=self.label_set,
            uuid=self.uuid,
            layout=self._layout,
            is_map=self._is_map,
            num_classes=self.num_classes,
            device=self.labeller.device_name,
        )
        self._bad: dict[int, str] = {}
        self._done: dict[int, int] = {}
        self._labelled = 0
        # rows that no image has are no crops to label
        blocks = range(self._layout.num_blocks)
        self._images = [self.store.num_images_in(self._layout.rows(block)) for block in blocks]
        self._total = sum(self._images) * self._layout.num_crops

    def run(self) -> GenerationReport:
        """Label what is free until every block is committed. IncompleteError at the deadline."""
        started = time.monotonic()
        complete = self._is_complete()
        before = self._labelled_before()
        self._show_progress()
        if complete:
            check_committed_files(self.store, self._group)
            return self._report(started, before)
        with self._blocks:
            while True:
                self._label_what_is_free()
                self._blocks.finish()
                complete = self._is_complete()
                self._show_progress()
                if complete:
                    self._blocks.own_row()
                    break
                self._check_deadline()
                time.sleep(POLL_SECONDS)  # others are at work; one of them may die
        self.store.refresh()
        return self._report(started, before)

    def _label_what_is_free(self) -> None:
        batches = TeacherBatches(
            self._jobs(),
            WholeImages() if self._is_map else self.store.planned_crops(self.plan.name),
            num_crops=self._layout.num_crops,
            batch_size=self.batch_size,
            input_size=self.teacher.row.input_size,
            interpolation=self.teacher.row.interpolation,
            workers=self.threads,
            check=self._check_unchanged,
            pin_memory=backend_of(self.labeller.device).copies_ahead,
            crop_device=self.crop_device,
            # no more than a block: what is leased ahead, nobody else can take
            most_ahead=self._layout.images_per_shard,
            augmentation=planned_augmentation(self.plan.parameters),
            mixed=mixed_crops(self.store, self.plan, self.folder),
        )
        watch = Stopwatch()
        with closing(iter(batches)) as ready, closing(self._labelled_batches(ready)) as labelled:
            for batch, labels in labelled:
                self._take(batch, labels, watch.lap())
                self._show_progress()
                self._blocks.keep_up()
                self._check_deadline()

    def _labelled_batches(
        self, batches: Iterator[TeacherBatch]
    ) -> Generator[tuple[TeacherBatch, dict[str, NDArray[Any]]], None, None]:
        """Each batch with its labels, while the teacher is at the next."""
        with ThreadPoolExecutor(1, thread_name_prefix="teacher") as teacher:
            behind: tuple[TeacherBatch, Future[dict[str, NDArray[Any]]]] | None = None
            for batch in batches:
                labels = teacher.submit(self.labeller, batch.pixels[: batch.size])
                if behind is not None:
                    yield behind[0], behind[1].result()
                behind = batch, labels
            if behind is not None:
                yield behind[0], behind[1].result()

    def _take(self, batch: TeacherBatch, labels: dict[str, NDArray[Any]], seconds: float) -> None:
        """Put a batch's labels where they belong; its seconds are shared by its crops."""
        self._blocks.drop_lost()
        for segment in batch.segments:
            opened = segment.opened.result()
            block = self._blocks.block_of(opened.job.image)
            if block is None or opened.job.image not in block.pending:
                continue  # the lease of its block was lost, or the image was left out
            count = segment.last - segment.first
            part = slice(segment.at, segment.at + count)
            values = {name: array[part] for name, array in labels.items()}
            if opened.bad is not None:
                self._leave_out(block, opened)
                self._done[block.lease.block] += block.num_new
            else:
                self._refuse_nan(
                    opened, segment.first, values["probs" if "probs" in values else "logits"]
                )
                share = seconds * count / batch.size
                block.add(opened, segment.first, segment.last, values, share)
                self._labelled += count
                self._done[block.lease.block] += count
            if block.is_complete:
                self._blocks.hand_over(block)

    def _jobs(self) -> Iterator[ImageJob]:
        """Images to label, block after block, each leased when its first image is asked for."""
        while (lease := self._blocks.lease()) is not None:
            keys = self.store.image_columns["key"]
            images = self._images[lease.block]
            block = self._blocks.open(lease, self._committed().get(lease.block, ()))
            for image in sorted(block.pending & self.gone):
                self._bad[image] = f"{keys[image]} was not in {self.folder.root}"
                block.leave_out(image, self._bad[image])
            self._done[lease.block] = images * block.first_crop
            self._done[lease.block] += (images - len(block.pending)) * block.num_new
            self._blocks.hold(block)
            wanted = sorted(block.pending)
            if block.is_complete:
                self._blocks.hand_over(block)
            for image in wanted:
                if self._blocks.block_of(image) is not block:
                    break  # lost meanwhile: its next holder labels the rest
                yield ImageJob(
                    image=image,
                    key=keys[image],
                    path=self.folder.file(keys[image]),
                    first_crop=block.first_crop,
                )

    def _check_unchanged(self, opened: OpenedImage) -> None:
        if self.store.image_digest(opened.job.image) not in (None, opened.digest):
            raise RejectedInput(
                f"{opened.job.path} changed since the store was made: restore the file, or make a new store"
            )

    def _leave_out(self, block: ImageBlock, opened: OpenedImage) -> None:
        assert opened.bad is not None
        if self.store.image_digest(opened.job.image) is not None:
            # left out, it would be left out of every label set, also of those that have its labels
            raise RejectedInput(
                f"{opened.bad}; it could be when other labels were made: restore the file, or make a new store"
            )
        if not self.skip_bad:
            raise RejectedInput(f"{opened.bad}; --skip-bad leaves such images out and records them")
        block.leave_out(opened.job.image, opened.bad)
        self._bad[opened.job.image] = opened.bad

    def _refuse_nan(self, opened: OpenedImage, first: int, values: NDArray[Any]) -> None:
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            crop = first + int(np.flatnonzero(~finite)[0])
            raise RejectedInput(
                f"the teacher returned NaN for crop {crop} of {opened.job.key}: nothing of its block was committed; "
                "check the weights, or try --amp none"
            )

    def _check_deadline(self) -> None:
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise IncompleteError(
                f"stopped after --max-time with {sum(self._done.values())} of {self._total} crops of "
                f"{self.label_set} labelled: run the same command again to go on"
            )

    def _committed(self) -> dict[int, list[int]]:
        """Per block the committed crop shards that the plan had when this began; others may have grown it since.

        What others have committed since counts as done.
        """
        found = {
            block: [shard for shard in shards if shard < self._layout.num_crop_shards]
            for block, shards in self.store.catalogue.ledger.committed(self._group).items()
            if block < self._layout.num_blocks
        }
        for block, shards in found.items():
            crops = self._images[block] * len(shards) * self._layout.crops_per_shard
            self._done[block] = max(crops, self._done.get(block, 0))
        return found

    def _labelled_before(self) -> int:
        """Committed crops of images that were not left out."""
        shards = self.store.catalogue.ledger.shards(self._group)
        inside = [row for row in shards if row.crop_shard < self._layout.num_crop_shards]
        return sum(row.num_images for row in inside) * self._layout.crops_per_shard

    def _is_complete(self) -> bool:
        committed = self._committed()
        whole = self._layout.num_crop_shards
        return sum(len(shards) == whole for shards in committed.values()) == self._layout.num_blocks

    def _show_progress(self) -> None:
        self.progress(sum(self._done.values()), self._total)

    def _report(self, started: float, before: int) -> GenerationReport:
        seconds = time.monotonic() - started
        keys = self.store.image_columns["key"]
        return GenerationReport(
            label_set=self.label_set,
            num_images=self.store.num_images,
            num_crops=self._labelled,
            already_committed=before,
            bad={str(keys[image]): why for image, why in sorted(self._bad.items())},
            seconds=seconds,
            crops_per_second=self._labelled / seconds if seconds else 0.0,
        )
