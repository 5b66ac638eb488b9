"""The image blocks of an import: labels of their images are read, checked, and become arrays with boxes and facts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from labelstore.catalogue.records import IMPORTED, LabelSetRow, PlanRow
from labelstore.codecs.base import MapTopK, TopK
from labelstore.commit.block_jobs import BlockSource, LeasedBlock, MadeBlock
from labelstore.commit.labelled_block import LabelledBlock, arrays_of
from labelstore.commit.spool import LabelledImage
from labelstore.commit.staging import BlockArrays
from labelstore.cropping.crop_plan import MAX_SIDE, is_imported
from labelstore.errors import RejectedInput, StorageError
from labelstore.exchange.labels import (
    BadFile,
    Conversion,
    ImageLabels,
    LabelSource,
    read_together,
    softmax,
)
from labelstore.images import ImageFile, ImageSource, digest, image_size

KnownCrops: TypeAlias = Callable[[int, int, int], tuple[NDArray[np.uint16], NDArray[np.bool_]]]
"""(image row, height, width) -> boxes and flips."""
TOGETHER = 32
"""Images whose labels are read and checked together."""


@dataclass(frozen=True, kw_only=True)
class BlockResult:
    """What became of one image block."""

    num_images: int
    """Committed; 0 where a file cannot be used and nothing of the block was committed."""
    is_rejected: bool
    bad: tuple[BadFile, ...]
    truth: tuple[float, int]
    """Sum of the labels' probabilities of the ground truth, and of how many crops."""


@dataclass(kw_only=True)
class ImportedBlocks(BlockSource):
    """The blocks of a label set that is imported."""

    source: LabelSource
    folder: ImageSource
    conversion: Conversion
    row: LabelSetRow
    """That was compared with the source."""
    plan: PlanRow
    skip_bad: bool
    has_truth: bool
    """Whether the labels' classes are the image folder's."""

    def size(self, block: int) -> int:
        """Rows, of which a few may have no image."""
        return len(self.layout.rows(block))

    def arrays(self, leased: LeasedBlock) -> MadeBlock:
        """Import one block; it stays open where a file of it cannot be used, unless such are left out."""
        started = time.perf_counter()
        crops = _BlockCrops(self, leased)
        block = LabelledBlock(
            rows=leased.rows,
            missing=range(self.layout.num_crop_shards),
            num_crops=self.layout.num_crops,
            crops_per_shard=self.layout.crops_per_shard,
        )
        keys, known_bad = self.store.image_columns["key"], self.store.bad
        bad: dict[int, BadFile] = {}
        wanted = [image for image in leased.rows if not known_bad[image]]
        for first in range(0, len(wanted), TOGETHER):
            problems = self._read(block, crops, wanted[first : first + TOGETHER])
            for image, error in sorted(problems.items()):
                bad[image] = self._bad_file(image, str(keys[image]), str(error))
        rejected = bool(bad) and not self.skip_bad
        shards = [] if rejected else self._shards(block, crops)
        return MadeBlock(
            leased=leased,
            shards=None if rejected else lambda: shards,
            num_images=len(block.done),
            facts=block.facts({i: f"no labels: {b.reason}"[:500] for i, b in bad.items()}),
            seconds=time.perf_counter() - started,
            device=IMPORTED,
            result=BlockResult(
                num_images=0 if rejected else len(block.done),
                is_rejected=rejected,
                bad=tuple(bad.values()),
                truth=self._truth(block),
            ),
        )

    def _shards(self, block: LabelledBlock, crops: _BlockCrops) -> list[BlockArrays]:
        """Label shards and, where no label set has committed them yet, the crops'."""
        codec = block.codec(self.store, self.row)
        shards = block.label_shards(self.row.name, codec, self.row.num_classes)
        if self.conversion.kind != "map" and self.plan.stored and not crops.are_committed:
            shards += block.crop_shards(self.plan)
        return shards

    def _read(
        self, block: LabelledBlock, crops: _BlockCrops, images: Sequence[int]
    ) -> dict[int, RejectedInput]:
        """Put the labels of some images into the block; those that cannot be used, with the reason."""
        keys = self.store.image_columns["key"]
        facts: dict[int, tuple[int, int, bytes]] = {}
        problems: dict[int, RejectedInput] = {}
        for image in images:
            try:
                facts[image] = self._facts(image, self.folder.file(keys[image]))
            except RejectedInput as error:
                problems[image] = error
        places = [self._place(image) for image in facts]
        sizes = [(height, width) for height, width, _ in facts.values()]
        for image, place, found in zip(
            facts, places, read_together(self.source, places, sizes), strict=True
        ):
            try:
                if isinstance(found, RejectedInput):
                    raise found
                block.done[image] = self._labelled(crops, image, place, found, facts[image])
            except RejectedInput as error:
                problems[image] = error
        return problems

    def _facts(self, image: int, path: ImageFile) -> tuple[int, int, bytes]:
        """Height, width and digest of an image; RejectedInput where it cannot be the labelled one.

        StorageError where it cannot be read: skipping is permanent, so no image is skipped for a transient I/O error.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror}") from error
        try:
            height, width = image_size(data)
        except RejectedInput as error:
            raise RejectedInput(f"{path}: {error}") from None
        if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
            raise RejectedInput(f"{path}: is {height} x {width} pixels; a side is 1 to {MAX_SIDE}")
        mark = digest(data)
        if self.store.image_digest(image) not in (None, mark):
            raise RejectedInput(f"{path}: changed since the store was made")
        return height, width, mark

    def _labelled(
        self,
        crops: _BlockCrops,
        image: int,
        place: int,
        image_labels: ImageLabels,
        facts: tuple[int, int, bytes],
    ) -> LabelledImage:
        height, width, mark = facts
        if image_labels.mixed is not None:
            partners = self._rows[image_labels.mixed["mix_image"]]
            image_labels = replace(
                image_labels, mixed={**image_labels.mixed, "mix_image": partners.astype(np.uint32)}
            )
        try:
            labels = arrays_of(self.conversion(image_labels.labels), self.row.num_classes)
            arrays = labels | crops.arrays(image, image_labels, height, width)
        except RejectedInput as error:
            raise RejectedInput(f"{self.source.file_of(place)}: {error}") from None
        return LabelledImage(image=image, height=height, width=width, digest=mark, arrays=arrays)

    @cached_property
    def _rows(self) -> NDArray[np.int64]:
        """Image rows in the order of the folder: where a store grew, rows without an image stand in between."""
        return np.flatnonzero(~self.store.free)

    def _place(self, image: int) -> int:
        """Where an image row's image is in the folder."""
        return int(np.searchsorted(self._rows, image))

    def _bad_file(self, image: int, key: str, message: str) -> BadFile:
        file = self.source.file_of(self._place(image))
        for path in (file, self.folder.file(key)):
            if message.startswith(f"{path}: "):
                return BadFile(file=str(path), reason=message.removeprefix(f"{path}: "), image=key)
        return BadFile(file=str(file), reason=message, image=key)

    def _truth(self, block: LabelledBlock) -> tuple[float, int]:
        labels = block.labels(slice(0, self.layout.num_crops))
        if not self.has_truth or not block.done or isinstance(labels, MapTopK):
            return 0.0, 0
        class_ids = self.store.image_columns["class_id"][block.rows.start : block.rows.stop]
        truth = class_ids[:, None, None]
        if isinstance(labels, TopK):
            kept = labels.class_ids == truth
            # a class that is not kept has its share of the tail
            others = max(self.row.num_classes - labels.probs.shape[-1], 1)
            of_truth = np.where(kept.any(-1), (labels.probs * kept).sum(-1), labels.tail / others)
        else:
            if self.conversion.codec.takes == "outputs":
                labels = softmax(labels, 1.0)
            inside = np.clip(truth, 0, labels.shape[-1] - 1)
            whole = np.broadcast_to(inside, (*labels.shape[:2], 1))
            of_truth = np.take_along_axis(labels, whole, -1)[..., 0]
        here = np.isfinite(of_truth)
        return float(of_truth[here].sum(dtype=np.float64)), int(here.sum())


class _BlockCrops:
    """The crops of one block's images: those of the files, which must be the plan's where that has them."""

    def __init__(self, job: ImportedBlocks, leased: LeasedBlock) -> None:
        self._job = job
        self._rows = leased.rows
        self._group = f"crops/{job.plan.name}"
        self.are_committed = job.plan.stored and leased.block in job.store.group(self._group).blocks
        self._known = self._known_crops(leased.block)

    def arrays(
        self, image: int, image_labels: ImageLabels, height: int, width: int
    ) -> dict[str, NDArray[Any]]:
        """Boxes, flips and mixtures of one image; RejectedInput where its boxes are not the plan's."""
        if image_labels.boxes is None or image_labels.flips is None:
            return {}
        if self._known is not None:
            boxes, flips = self._known(image, height, width)
            same = np.array_equal(boxes, image_labels.boxes) and np.array_equal(
                flips, image_labels.flips
            )
            if not same or image_labels.mixed is not None:
                raise RejectedInput(
                    f"its crops are not those of crop plan {self._job.plan.name}: import it with `plan_name` of another"
                )
        return {"box": image_labels.boxes, "flip": image_labels.flips, **(image_labels.mixed or {})}

    def _known_crops(self, block: int) -> KnownCrops | None:
        """The plan's crops, where it has them from elsewhere."""
        job = self._job
        if self.are_committed:
            stored = job.store.group(self._group)
            boxes, flips = stored.read(block, None, "box"), stored.read(block, None, "flip")
            first = self._rows.start
            return lambda image, height, width: (boxes[image - first], flips[image - first] == 1)
        if is_imported(job.plan.parameters) or job.conversion.kind == "map":
            return None
        plan, numbers = job.store.planned_crops(job.plan), np.arange(job.plan.num_crops)
        keys = job.store.image_columns["key"]
        return lambda image, height, width: plan.crops(str(keys[image]), height, width, numbers)
