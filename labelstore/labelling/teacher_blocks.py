"""A label set's blocks as its teacher makes them: images become crops, crops labels, and labels go to their blocks.

Finished images go to the spool: whatever stops the worker, the next holder of the block goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.catalogue.records import LabelSetRow, PlanRow
from labelstore.codecs.base import LabelCodec
from labelstore.commit.block_jobs import BlockStream, LeasedBlock, MadeBlock
from labelstore.commit.labelled_block import LabelledBlock
from labelstore.commit.spool import LabelledImage, Spool, read_spools, remove_spools
from labelstore.commit.staging import BlockArrays
from labelstore.errors import LeaseLost, RejectedInput
from labelstore.labelling.crop_batches import ImageJob, OpenedImage
from labelstore.labelling.labelling import LabelledCrops, Labelling
from labelstore.store import Store
from labelstore.store.layout import BOX, FLIP


@dataclass(kw_only=True)
class TeacherBlocks(BlockStream):
    """The blocks of one label set; a batch may hold crops of several."""

    labelling: Labelling
    plan: PlanRow
    row: LabelSetRow
    """That the labelling was compared with."""
    gone: frozenset[int]
    """Image rows that are left out because their images are not in the folder."""
    bad: dict[int, str] = field(default_factory=dict)
    """Left out by this worker: image row -> reason."""
    num_labelled: int = 0
    """Crops labelled by this worker."""
    has_begun: bool = False
    """Whether a batch was labelled, or every block was another worker's."""

    def __post_init__(self) -> None:
        self._spools = self.store.path / "spool" / self.row.name
        self._held: dict[int, tuple[LeasedBlock, ImageBlock]] = {}
        self._complete: list[tuple[LeasedBlock, ImageBlock]] = []
        self._labelled: dict[int, int] = {}
        self._codec: LabelCodec | None = None

    def size(self, block: int) -> int:
        """Crops of the block's images: rows that no image has are none to label."""
        return self.store.num_images_in(self.layout.rows(block)) * self.layout.num_crops

    def make(self, leased: Iterator[LeasedBlock]) -> Iterator[MadeBlock | None]:
        """Label the images of leased blocks, batch by batch."""
        self._labelled.clear()
        self.under_way = 0
        batches = self.labelling.label(
            self.store,
            self.plan,
            self._jobs(leased),
            num_crops=self.layout.num_crops,
            check=self._check_unchanged if self.store.image_columns["has_digest"].any() else None,
            # no more than a block: what is leased ahead, no other worker can take
            most_ahead=self.layout.images_per_shard,
        )
        try:
            with closing(batches):
                for batch in batches:
                    self._drop_lost()
                    for crops in batch:
                        self._take(crops)
                    self.has_begun = True
                    self.under_way = sum(self._labelled.values())
                    yield from self._made()
                    yield None
            self.has_begun = True
            self.under_way = sum(self._labelled.values())
            yield from self._made()
        finally:
            for _, block in self._held.values():
                block.close()
            self._held.clear()

    def committed(self, made: MadeBlock) -> None:
        """Remove what was spooled of the block: it is in the store now."""
        self._labelled.pop(made.leased.block, None)
        self.under_way = sum(self._labelled.values())
        remove_spools(self._spools, made.leased.block)

    def _jobs(self, leased: Iterator[LeasedBlock]) -> Iterator[ImageJob]:
        """Images to label, block after block, each leased when its first image is asked for."""
        keys = self.store.image_columns["key"]
        for lease in leased:
            block = ImageBlock(
                rows=lease.rows,
                missing=lease.missing,
                num_crops=self.layout.num_crops,
                crops_per_shard=self.layout.crops_per_shard,
                pending={i for i in lease.rows if not self.store.bad[i]},
                spool=Spool(self._spools, lease.lease, self.row.uuid),
            )
            block.take(read_spools(self._spools, lease.block, self.row.uuid))
            for image in sorted(block.pending & self.gone):
                self.bad[image] = f"{keys[image]} was not in {self.labelling.images.root}"
                block.leave_out(image, self.bad[image])
            self._labelled[lease.block] = (
                self.size(lease.block) - len(block.pending) * block.num_new
            )
            self._held[lease.block] = lease, block
            jobs = self.labelling.jobs(self.store, sorted(block.pending), block.first_crop)
            number = lease.block
            self._hand_over_if_complete(number)
            for job in jobs:
                if number not in self._held:
                    break  # lost meanwhile: its next holder labels the rest
                yield job

    def _take(self, crops: LabelledCrops) -> None:
        """Put the labels of one image's crops where they belong."""
        image, opened = crops.opened.job.image, crops.opened
        number = image // self.layout.images_per_shard
        _, block = self._held.get(number, (None, None))
        if block is None or image not in block.pending:
            return  # the lease of its block was lost, or the image was left out
        if opened.bad is not None:
            self._leave_out(block, opened)
            self._labelled[number] += block.num_new
        else:
            self._refuse_nan(crops)
            block.add(opened, crops.first, crops.last, crops.labels, crops.seconds)
            self.num_labelled += crops.last - crops.first
            self._labelled[number] += crops.last - crops.first
        self._hand_over_if_complete(number)

    def _hand_over_if_complete(self, number: int) -> None:
        if not self._held[number][1].pending:
            self._complete.append(self._held.pop(number))

    def _drop_lost(self) -> None:
        """Let go of blocks that another worker took; what is in their spools serves that one."""
        for number, (lease, block) in list(self._held.items()):
            try:
                lease.current()
            except LeaseLost:
                block.close()
                del self._held[number], self._labelled[number]

    def _made(self) -> Iterator[MadeBlock]:
        while self._complete:
            lease, block = self._complete.pop(0)
            known = self.store.bad
            yield MadeBlock(
                leased=lease,
                shards=partial(self._shards, block),
                num_images=len(block.done),
                facts=block.facts({i: why for i, why in block.bad.items() if not known[i]}),
                seconds=block.seconds,
                device=self.labelling.labeller.device_name,
            )

    def _shards(self, block: ImageBlock) -> list[BlockArrays]:
        """In the thread that commits: labels, and the plan's crops that no label set has committed yet."""
        block.close()
        self._codec = self._codec or block.codec(self.store, self.row)
        shards = block.label_shards(self.row.name, self._codec, self.row.num_classes)
        if not self.plan.stored:
            return shards
        number = block.rows.start // self.layout.images_per_shard
        there = self.store.catalogue.ledger.committed(f"crops/{self.plan.name}").get(number, ())
        if len(there) * self.plan.crops_per_shard >= self.plan.num_crops:
            return shards
        if self._codec.takes == "map":
            sizes = {image: (one.height, one.width) for image, one in block.done.items()}
            made = crop_shards_of(self.store, self.plan, block.rows, sizes)
        else:
            made = block.crop_shards(self.plan)
        return shards + [shard for shard in made if shard.crop_shard not in there]

    def _check_unchanged(self, opened: OpenedImage) -> None:
        image, columns = opened.job.image, self.store.image_columns
        if columns["has_digest"][image] and columns["digest"][image].tobytes() != opened.digest:
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
        if not self.labelling.options.skip_bad:
            raise RejectedInput(f"{opened.bad}; `skip_bad` leaves such images out and records them")
        block.leave_out(opened.job.image, opened.bad)
        self.bad[opened.job.image] = opened.bad

    def _refuse_nan(self, crops: LabelledCrops) -> None:
        values = crops.labels["probs" if "probs" in crops.labels else "logits"]
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            crop = crops.first + int(np.flatnonzero(~finite)[0])
            raise RejectedInput(
                f"the teacher returned NaN for crop {crop} of {crops.opened.job.key}: nothing of its block was "
                "committed; check the weights, or try `autocast=none`"
            )


@dataclass(kw_only=True)
class ImageBlock(LabelledBlock):
    """Labels of a block's images as they come in, batch by batch."""

    pending: set[int]
    """Image rows that still wait for labels."""
    spool: Spool | None = None
    """Where finished images are kept until the block is committed."""
    bad: dict[int, str] = field(default_factory=dict)
    """Left out, now or in an earlier session: image row -> reason."""
    _partial: dict[int, dict[str, NDArray[Any]]] = field(default_factory=dict)
    _seconds: dict[int, float] = field(default_factory=dict)

    def take(self, spooled: Mapping[int, LabelledImage]) -> None:
        """Take images that an earlier lease finished.

        What was labelled for another range of crops, before the plan grew, is of no use.
        """
        usable = {
            image: labelled
            for image, labelled in spooled.items()
            if image in self.pending
            and (labelled.first_crop, len(labelled.arrays["box"]))
            == (self.first_crop, self.num_new)
        }
        self.done |= usable
        self.pending -= usable.keys()

    @property
    def seconds(self) -> float:
        """Seconds spent on the images that have labels, summed over workers."""
        return sum(labelled.seconds for labelled in self.done.values())

    def add(
        self,
        opened: OpenedImage,
        first: int,
        last: int,
        labels: Mapping[str, NDArray[Any]],
        seconds: float = 0.0,
    ) -> None:
        """Take the labels of crops [first, last) of one image; its last crop finishes it."""
        image = opened.job.image
        self._seconds[image] = self._seconds.get(image, 0.0) + seconds
        arrays = self._partial.setdefault(image, {})
        for name, values in labels.items():
            if name not in arrays:
                arrays[name] = np.empty((self.num_new, *values.shape[1:]), values.dtype)
            arrays[name][first - self.first_crop : last - self.first_crop] = values
        if last < self.num_crops:
            return
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
        if self.spool is not None:
            self.spool.append(finished)
        self.done[image] = finished
        self.pending.discard(image)

    def leave_out(self, image: int, reason: str) -> None:
        """Record an image that cannot be used."""
        self.bad[image] = reason
        self.pending.discard(image)
        self._partial.pop(image, None)

    def close(self) -> None:
        """Sync and close the spool."""
        if self.spool is not None:
            self.spool.close()


def crop_shards_of(
    store: Store, plan: PlanRow, rows: range, sizes: Mapping[int, tuple[int, int]]
) -> list[BlockArrays]:
    """Boxes and flips of all crops of a plan for the images of one block: what a map's commit adds to the plan.

    `sizes` are (height, width) of the images that have labels, by image row; the others are sentinels.
    """
    known = sorted(sizes)
    keys = [str(store.image_columns["key"][image]) for image in known]
    boxes = np.full((len(rows), plan.num_crops, 4), BOX.fill, np.uint16)
    flips = np.full((len(rows), plan.num_crops), FLIP.fill, np.uint8)
    if known:
        at = [image - rows.start for image in known]
        boxes[at], flips[at] = store.crop_plan(plan.name).crops_of_images(
            keys,
            np.array([sizes[image] for image in known]),
            np.broadcast_to(np.arange(plan.num_crops), (len(known), plan.num_crops)),
        )
    width = plan.crops_per_shard
    cuts = [slice(first, first + width) for first in range(0, plan.num_crops, width)]
    return [
        BlockArrays(
            group=f"crops/{plan.name}",
            crop_shard=crop_shard,
            arrays={"box": boxes[:, cut], "flip": flips[:, cut]},
        )
        for crop_shard, cut in enumerate(cuts)
    ]
