"""One worker's share of a label set: lease a block, label its crops, commit it, take the next.

The teacher runs in a thread of its own, so that it sees the next batch while this one's labels are put where they
belong; commits happen in another. Whatever stops a worker, what it has finished is in the ledger or in the spool.
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

from labelstore.catalogue.records import LabelSetRow, PlanRow
from labelstore.codecs import is_map
from labelstore.codecs.base import LabelCodec, TopK
from labelstore.crop_augmentation import planned_augmentation
from labelstore.errors import (
    ConflictError,
    IncompleteError,
    LeaseLost,
    RejectedInput,
    UsageError,
)
from labelstore.generation.committed_files import check_committed_files
from labelstore.generation.crop_batches import CropBatch, CropBatches, ImageJob, OpenedImage
from labelstore.generation.image_block import ImageBlock, Stopwatch
from labelstore.generation.labeller import Labeller
from labelstore.generation.mixed_crops import mixed_crops
from labelstore.generation.teachers import Teacher
from labelstore.generation.whole_images import WholeImages, crop_shards_of
from labelstore.images import ImageSource
from labelstore.schema import label_layout
from labelstore.store import BlockArrays, ImageFacts, Store, write_block
from labelstore.store.leases import LeaseKeeper, Progress
from labelstore.store.settling import settled_codec
from labelstore.store.spool import Spool, read_spools, remove_spools

COMMITS_BEHIND = 2
"""Labelled blocks that may wait for the disk: each is held in memory."""
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
        self._spools = self.store.path / "spool" / self.label_set
        self._blocks: dict[int, ImageBlock] = {}
        self._bad: dict[int, str] = {}
        self._done: dict[int, int] = {}
        self._labelled = 0
        # rows that no image has are no crops to label
        blocks = range(self._layout.num_blocks)
        self._images = [self.store.num_images_in(self._layout.rows(block)) for block in blocks]
        self._total = sum(self._images) * self._layout.num_crops
        self._commits: list[Future[None]] = []

    def run(self) -> GenerationReport:
        """Label what is free until every block is committed. IncompleteError at the deadline."""
        started = time.monotonic()
        complete = self._is_complete()
        before = self._labelled_before()
        self._show_progress()
        if complete:
            check_committed_files(self.store, self._group)
            return self._report(started, before)
        self._keeper = LeaseKeeper(
            self.store.catalogue,
            self._group,
            self._layout.num_blocks,
            self._layout.num_crop_shards,
            identity=self.uuid,
        )
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="commit")
        try:
            while True:
                self._label_what_is_free()
                for commit in self._commits:
                    commit.result()
                self._commits.clear()
                complete = self._is_complete()
                self._show_progress()
                if complete:
                    self._own_row()
                    break
                self._check_deadline()
                time.sleep(POLL_SECONDS)  # others are at work; one of them may die
        finally:
            self._writer.shutdown(wait=True)
            for block in self._blocks.values():
                block.spool.close()
            self._keeper.close()
        self.store.refresh()
        return self._report(started, before)

    def _label_what_is_free(self) -> None:
        batches = CropBatches(
            self._jobs(),
            WholeImages() if self._is_map else self.store.planned_crops(self.plan.name),
            num_crops=self._layout.num_crops,
            batch_size=self.batch_size,
            input_size=self.teacher.row.input_size,
            interpolation=self.teacher.row.interpolation,
            workers=self.threads,
            check=self._check_unchanged,
            pin_memory=torch.cuda.is_available(),
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
                while self._commits and (
                    len(self._commits) > COMMITS_BEHIND or self._commits[0].done()
                ):
                    self._commits.pop(0).result()
                self._check_deadline()

    def _labelled_batches(
        self, batches: Iterator[CropBatch]
    ) -> Generator[tuple[CropBatch, dict[str, NDArray[Any]]], None, None]:
        """Each batch with its labels, while the teacher is at the next."""
        with ThreadPoolExecutor(1, thread_name_prefix="teacher") as teacher:
            behind: tuple[CropBatch, Future[dict[str, NDArray[Any]]]] | None = None
            for batch in batches:
                labels = teacher.submit(self.labeller, batch.pixels[: batch.size])
                if behind is not None:
                    yield behind[0], behind[1].result()
                behind = batch, labels
            if behind is not None:
                yield behind[0], behind[1].result()

    def _take(self, batch: CropBatch, labels: dict[str, NDArray[Any]], seconds: float) -> None:
        """Put a batch's labels where they belong; its seconds are shared by its crops."""
        self._drop_lost_blocks()
        for segment in batch.segments:
            opened = segment.opened.result()
            number = opened.job.image // self._layout.images_per_shard
            block = self._blocks.get(number)
            if block is None or opened.job.image not in block.pending:
                continue  # the lease of its block was lost, or the image was left out
            count = segment.last - segment.first
            part = slice(segment.at, segment.at + count)
            values = {name: array[part] for name, array in labels.items()}
            if opened.bad is not None:
                self._leave_out(block, opened)
                self._done[number] += block.num_new
            else:
                self._refuse_nan(
                    opened, segment.first, values["probs" if "probs" in values else "logits"]
                )
                share = seconds * count / batch.size
                block.add(opened, segment.first, segment.last, values, share)
                self._labelled += count
                self._done[number] += count
            if block.is_complete:
                self._hand_over(block)

    def _jobs(self) -> Iterator[ImageJob]:
        """Images to label, block after block, each leased when its first image is asked for."""
        while (lease := self._keeper.acquire()) is not None:
            keys, bad = self.store.image_columns["key"], self.store.bad
            rows = self._layout.rows(lease.block)
            known_bad = {i for i in rows if bad[i]}
            images = self._images[lease.block]
            there = self._committed().get(lease.block, [])
            block = ImageBlock(
                lease=lease,
                rows=rows,
                num_crops=self._layout.num_crops,
                missing=[i for i in range(self._layout.num_crop_shards) if i not in there],
                crops_per_shard=self._layout.crops_per_shard,
                spool=Spool(self._spools, lease, self.uuid),
                pending=set(rows) - known_bad,
            )
            block.take(read_spools(self._spools, lease.block, self.uuid))
            for image in sorted(block.pending & self.gone):
                self._bad[image] = f"{keys[image]} was not in {self.folder.root}"
                block.leave_out(image, self._bad[image])
            self._done[lease.block] = images * block.first_crop
            self._done[lease.block] += (images - len(block.pending)) * block.num_new
            self._blocks[lease.block] = block
            wanted = sorted(block.pending)
            if block.is_complete:
                self._hand_over(block)
            for image in wanted:
                if self._blocks.get(lease.block) is not block:
                    break  # lost meanwhile: its next holder labels the rest
                yield ImageJob(
                    image=image,
                    key=keys[image],
                    path=self.folder.file(keys[image]),
                    first_crop=block.first_crop,
                )

    def _drop_lost_blocks(self) -> None:
        for number, block in list(self._blocks.items()):
            try:
                self._keeper.current(block.lease)
            except LeaseLost:
                # what is in the spool serves whoever took the block
                block.spool.close()
                del self._blocks[number]

    def _hand_over(self, block: ImageBlock) -> None:
        del self._blocks[block.lease.block]
        self._commits.append(self._writer.submit(self._commit, block))

    def _commit(self, block: ImageBlock) -> None:
        block.spool.close()
        try:
            lease = self._keeper.current(block.lease)
            codec = self._settled_codec(block)
            shards = block.label_arrays(self.label_set, codec, self.num_classes)
            if self.plan.stored:
                there = self.store.catalogue.committed(f"crops/{self.plan.name}")
                have = there.get(block.lease.block, ())
                if len(have) * self.plan.crops_per_shard < self.plan.num_crops:
                    made = self._all_crops(block) if self._is_map else block.crop_arrays(self.plan)
                    shards += [s for s in made if s.crop_shard not in have]
            facts = block.facts()
            known = self.store.bad
            write_block(
                self.store,
                lease,
                shards,
                facts=ImageFacts(
                    decoded=facts.decoded,
                    bad={image: why for image, why in facts.bad.items() if not known[image]},
                ),
                num_images=len(block.done),
                seconds=block.seconds,
                device=self.labeller.device_name,
            )
        except LeaseLost:
            # another worker has the block and will commit it; the spool stays for it
            self._keeper.forget(block.lease.block)
            return
        self._keeper.forget(block.lease.block)
        remove_spools(self._spools, block.lease.block)

    def _all_crops(self, block: ImageBlock) -> list[BlockArrays]:
        """Boxes and flips of the plan's crops, of which a map's own is none."""
        sizes = {image: (one.height, one.width) for image, one in block.done.items()}
        return crop_shards_of(self.store, self.plan, block.rows, sizes)

    def _settled_codec(self, block: ImageBlock) -> LabelCodec:
        """The label set's codec; its form of class ids is chosen on the first shard that anyone commits."""

        def first() -> TopK | None:
            labels = block.labels(block.crop_shards()[0][1])
            assert isinstance(labels, TopK)
            return labels if block.done else None

        try:
            return settled_codec(self.store, self._own_row(), first, uuid=self.uuid)
        except (ConflictError, UsageError):
            self._own_row()  # says so where it is another one, or none
            raise

    def _own_row(self) -> LabelSetRow:
        """The label set's row; ConflictError where it was dropped since this worker began, or made anew."""
        for row in self.store.catalogue.label_sets():
            if row.name == self.label_set and row.uuid == self.uuid:
                return row
        raise ConflictError(
            f"label set {self.label_set} of {self.store.path} was dropped or made anew while this process was at "
            "work on it: what it made since is not committed; run the command again if it is still wanted"
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
            for block, shards in self.store.catalogue.committed(self._group).items()
            if block < self._layout.num_blocks
        }
        for block, shards in found.items():
            crops = self._images[block] * len(shards) * self._layout.crops_per_shard
            self._done[block] = max(crops, self._done.get(block, 0))
        return found

    def _labelled_before(self) -> int:
        """Committed crops of images that were not left out."""
        shards = self.store.catalogue.shards(self._group)
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
