"""One image block: read the labels of its images, check them, commit them together with boxes and image facts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from labelstore.catalogue.records import IMPORTED, Lease
from labelstore.codecs import missing_labels
from labelstore.codecs.base import LabelCodec, MapTopK, TopK
from labelstore.commit.lease_keeper import LeaseKeeper
from labelstore.commit.settling import settled_codec
from labelstore.commit.staging import BlockArrays, ImageFacts, write_block
from labelstore.cropping.crop_plan import MAX_SIDE, is_imported
from labelstore.errors import LeaseLost, RejectedInput, StorageError
from labelstore.exchange.labels import Conversion, EncodableLabels, ImageLabels
from labelstore.exchange.source import BadFile, LabelSource, read_together
from labelstore.images import ImageFile, ImageSource, digest, image_size
from labelstore.store import Store
from labelstore.store.layout import Layout, label_layout, plan_fields

KnownCrops: TypeAlias = Callable[[int, int, int, int], tuple[NDArray[np.uint16], NDArray[np.bool_]]]
"""(place in the block, image row, height, width) -> boxes and flips."""
TOGETHER = 32
"""Images whose labels are read and checked together."""


@dataclass(frozen=True, kw_only=True)
class BlockResult:
    """What became of one image block."""

    block: int
    outcome: Literal["committed", "rejected", "busy"]
    """`rejected`: a file of it cannot be used, nothing of it was committed; `busy`: another process has it."""
    num_images: int = 0
    bad: tuple[BadFile, ...] = ()
    truth: tuple[float, int] = (0.0, 0)
    """Sum of the labels' probabilities of the ground truth, and of how many crops."""


@dataclass(frozen=True, kw_only=True)
class BlockImport:
    """Imports single blocks; goes to worker processes."""

    store: Store
    source: LabelSource
    folder: ImageSource
    conversion: Conversion
    label_set: str
    uuid: str
    """Of the label set that was compared with the source: one that got its name later is another."""
    skip_bad: bool
    has_truth: bool
    """Whether the labels' classes are the image folder's."""

    def __call__(self, block: int) -> BlockResult:
        """Import one block. Errors that are nobody's file are raised."""
        group = f"labels/{self.label_set}"
        row = self.store.label_set_row(self.label_set)
        layout = label_layout(row, self.store.plan(row.plan), self.store.num_rows)
        keeper = LeaseKeeper(
            self.store.catalogue, group, [block], layout.num_crop_shards, identity=self.uuid
        )
        try:
            lease = keeper.acquire()
            if lease is None:
                there = len(self.store.catalogue.ledger.committed(group).get(block, ()))
                done = there == layout.num_crop_shards
                return BlockResult(block=block, outcome="committed" if done else "busy")
            try:
                return self._import(lease, layout.rows(block), lambda: keeper.current(lease))
            except LeaseLost:
                return BlockResult(block=block, outcome="busy")
        finally:
            keeper.close()

    def _import(self, lease: Lease, rows: range, current: Callable[[], Lease]) -> BlockResult:
        started = time.perf_counter()
        block = _Block(self.store, self.label_set, self.uuid, self.conversion, rows)
        keys, known_bad = self.store.image_columns["key"], self.store.bad
        bad: dict[int, BadFile] = {}
        wanted = [image for image in rows if not known_bad[image]]
        for first in range(0, len(wanted), TOGETHER):
            problems = self._read(block, wanted[first : first + TOGETHER])
            for image, error in sorted(problems.items()):
                bad[image] = self._bad_file(image, str(keys[image]), str(error))
        truth = self._truth(block)
        if bad and not self.skip_bad:
            return BlockResult(
                block=lease.block, outcome="rejected", bad=tuple(bad.values()), truth=truth
            )
        write_block(
            self.store,
            current(),
            block.shards(),
            facts=ImageFacts(
                decoded=sorted(block.facts),
                bad={i: f"no labels: {b.reason}"[:500] for i, b in bad.items()},
            ),
            num_images=len(block.facts),
            seconds=time.perf_counter() - started,
            device=IMPORTED,
        )
        return BlockResult(
            block=lease.block,
            outcome="committed",
            num_images=len(block.facts),
            bad=tuple(bad.values()),
            truth=truth,
        )

    def _read(self, block: _Block, images: Sequence[int]) -> dict[int, RejectedInput]:
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
                self._add(block, image, place, found, facts[image])
            except RejectedInput as error:
                problems[image] = error
        return problems

    def _facts(self, image: int, path: ImageFile) -> tuple[int, int, bytes]:
        """Height, width and digest of an image; RejectedInput where it cannot be the labelled one.

        StorageError where it cannot be read: a hole is for good, and must not depend on a disk's mood.
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

    def _add(
        self,
        block: _Block,
        image: int,
        place: int,
        found: ImageLabels,
        facts: tuple[int, int, bytes],
    ) -> None:
        height, width, mark = facts
        if found.mixed is not None:
            partners = self._rows[found.mixed["mix_image"]]
            found = replace(found, mixed={**found.mixed, "mix_image": partners.astype(np.uint32)})
        try:
            labels = self.conversion(found.labels)
            block.add(image, found, labels, height, width, mark)
        except RejectedInput as error:
            raise RejectedInput(f"{self.source.file_of(place)}: {error}") from None

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

    def _truth(self, block: _Block) -> tuple[float, int]:
        if not self.has_truth or isinstance(block.labels, MapTopK):
            return 0.0, 0
        truth = self.store.image_columns["class_id"][block.rows.start : block.rows.stop]
        return block.truth(truth)


class _Block:
    """The arrays of one block, filled image by image."""

    def __init__(
        self, store: Store, label_set: str, uuid: str, conversion: Conversion, rows: range
    ) -> None:
        self.rows = rows
        self.facts: list[tuple[int, int, int, bytes]] = []
        self._store = store
        self._name, self._uuid = label_set, uuid
        self._conversion = conversion
        row = store.label_set_row(label_set)
        self._plan = store.plan(row.plan)
        self._layout = Layout.of(self._plan, store.num_rows)
        self.labels: EncodableLabels = missing_labels(
            conversion.codec, len(rows), self._plan.num_crops, conversion.num_classes
        )
        self._crops = self._crop_arrays()
        group = f"crops/{self._plan.name}"
        block = rows.start // self._layout.images_per_shard
        self._committed = self._plan.stored and block in store.group(group).blocks
        self._known = self._known_crops(group, block)

    def add(
        self,
        image: int,
        found: ImageLabels,
        labels: EncodableLabels,
        height: int,
        width: int,
        mark: bytes,
    ) -> None:
        """Put one image's labels in their place; RejectedInput where its boxes are not the plan's."""
        at = image - self.rows.start
        if found.boxes is not None and found.flips is not None:
            self._add_crops(at, image, found, height, width)
        if isinstance(labels, MapTopK):
            assert isinstance(self.labels, MapTopK)
            self.labels.class_ids[at] = labels.class_ids[0]
            self.labels.logits[at] = labels.logits[0]
        elif isinstance(labels, TopK):
            assert isinstance(self.labels, TopK)
            self.labels.class_ids[at] = labels.class_ids
            self.labels.probs[at] = labels.probs
            self.labels.tail[at] = labels.tail
        else:
            assert isinstance(self.labels, np.ndarray)
            self.labels[at] = labels
        self.facts.append((image, width, height, mark))

    def shards(self) -> list[BlockArrays]:
        """Label shards and, where nobody has committed them yet, the crops'."""
        codec = self._settled_codec()
        classes = self._conversion.num_classes
        name = f"labels/{self._name}"
        if isinstance(self.labels, MapTopK):
            return [
                BlockArrays(group=name, crop_shard=0, arrays=codec.encode(self.labels, classes))
            ]
        made = []
        per = self._layout.crops_per_shard
        for shard in range(self._layout.num_crop_shards):
            part = slice(shard * per, (shard + 1) * per)
            arrays = codec.encode(_part(self.labels, part), classes)
            made.append(BlockArrays(group=name, crop_shard=shard, arrays=arrays))
            if self._plan.stored and not self._committed:
                made.append(
                    BlockArrays(
                        group=f"crops/{self._plan.name}",
                        crop_shard=shard,
                        arrays={field: array[:, part] for field, array in self._crops.items()},
                    )
                )
        return made

    def truth(self, class_ids: NDArray[Any]) -> tuple[float, int]:
        """Sum of the probabilities of the ground truth, and of how many crops."""
        truth = class_ids[:, None, None]
        if isinstance(self.labels, TopK):
            kept = self.labels.class_ids == truth
            # a class that is not kept has its share of the tail
            others = max(self._conversion.num_classes - self.labels.probs.shape[-1], 1)
            found = np.where(
                kept.any(-1), (self.labels.probs * kept).sum(-1), self.labels.tail / others
            )
        else:
            assert isinstance(self.labels, np.ndarray)
            labels = self.labels
            if self._conversion.codec.takes == "outputs":
                labels = np.exp(labels - labels.max(-1, keepdims=True))
                labels /= labels.sum(-1, keepdims=True)
            inside = np.clip(truth, 0, labels.shape[-1] - 1)
            found = np.take_along_axis(labels, np.broadcast_to(inside, (*labels.shape[:2], 1)), -1)[
                ..., 0
            ]
        here = np.isfinite(found)
        return float(found[here].sum(dtype=np.float64)), int(here.sum())

    def _add_crops(self, at: int, image: int, found: ImageLabels, height: int, width: int) -> None:
        assert found.boxes is not None
        assert found.flips is not None
        if self._known is not None:
            boxes, flips = self._known(at, image, height, width)
            same = np.array_equal(boxes, found.boxes) and np.array_equal(flips, found.flips)
            if not same or found.mixed is not None:
                raise RejectedInput(
                    f"its crops are not those of crop plan {self._plan.name}: import it with `plan_name` of another"
                )
            return
        self._crops["box"][at] = found.boxes
        self._crops["flip"][at] = found.flips
        for name, values in (found.mixed or {}).items():
            self._crops[name][at] = values

    def _crop_arrays(self) -> dict[str, NDArray[Any]]:
        shape = (len(self.rows), self._plan.num_crops)
        return {
            field.name: np.full((*shape, *field.shape), field.fill, field.dtype)
            for field in plan_fields(self._plan.parameters)
        }

    def _known_crops(self, group: str, block: int) -> KnownCrops | None:
        """The plan's crops, where it has them from elsewhere."""
        if self._committed:
            stored = self._store.group(group)
            boxes, flips = stored.read(block, None, "box"), stored.read(block, None, "flip")
            return lambda at, image, height, width: (boxes[at], flips[at] == 1)
        if is_imported(self._plan.parameters) or isinstance(self.labels, MapTopK):
            return None
        plan, numbers = self._store.crop_plan(self._plan.name), np.arange(self._plan.num_crops)
        keys = self._store.image_columns["key"]

        def computed(
            at: int, image: int, height: int, width: int
        ) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
            boxes, flips = plan.crops(str(keys[image]), height, width, numbers)
            self._crops["box"][at], self._crops["flip"][at] = boxes, flips
            return boxes, flips

        return computed

    def _settled_codec(self) -> LabelCodec:
        def first() -> TopK | None:
            labels = _part(self.labels, slice(0, self._layout.crops_per_shard))
            assert isinstance(labels, TopK)
            return labels if self.facts else None

        row = self._store.label_set_row(self._name)
        return settled_codec(self._store, row, first, uuid=self._uuid)


def _part(labels: EncodableLabels, crops: slice) -> EncodableLabels:
    if isinstance(labels, TopK):
        return replace(
            labels,
            class_ids=labels.class_ids[:, crops],
            probs=labels.probs[:, crops],
            tail=labels.tail[:, crops],
        )
    assert isinstance(labels, np.ndarray)
    return labels[:, crops]
