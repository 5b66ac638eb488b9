"""A store with given labels, written as generation writes one, but without images or a teacher."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.catalogue.records import LabelSetRow, Lease, TeacherRow
from labelstore.codecs import top_k
from labelstore.codecs.base import LabelCodec
from labelstore.commit.staging import BlockArrays, ImageFacts, write_block
from labelstore.images import ImageFolder
from labelstore.store import PlanOptions, Store, create
from labelstore.store.layout import BOX, FLIP

IMAGE_SIZE = (375, 500)
"""Height, width of every image."""


def filled_store(
    path: Path,
    soft_labels: NDArray[np.float32],
    codec: LabelCodec,
    *,
    ground_truth: NDArray[np.integer[Any]] | None = None,
    name: str = "teacher",
    images_per_shard: int | None = None,
    crops_per_shard: int | None = None,
    stored_crops: bool = True,
    bad: Collection[int] = (),
    backend: str = "zarr",
    catalogue: str | None = None,
    blocks: Iterable[int] | None = None,
) -> Store:
    """A new store at `path` with dense labels (N, M, C) in one label set; boxes from the crop plan.

    `bad` images are left out. `blocks` commits only these image blocks; `fill_blocks` commits others later.
    """
    num_images, num_crops, num_classes = soft_labels.shape
    plan = PlanOptions(
        num_crops=num_crops,
        images_per_shard=images_per_shard,
        crops_per_shard=crops_per_shard,
        stored_crops=stored_crops,
    )
    truth = np.arange(num_images) % num_classes if ground_truth is None else ground_truth
    store = empty_store(path, truth, num_classes, plan, backend=backend, catalogue=catalogue)
    add_label_set(store, codec, num_classes, name=name)
    fill_blocks(store, soft_labels, name=name, bad=bad, blocks=blocks)
    return store


def empty_store(
    path: Path,
    ground_truth: NDArray[np.integer[Any]],
    num_classes: int,
    plan: PlanOptions,
    *,
    backend: str = "zarr",
    catalogue: str | None = None,
) -> Store:
    """A new store of images of these classes (N,), which exist nowhere, without labels."""
    folder = ImageFolder(
        root=path,
        classes=tuple(f"class{c:04d}" for c in range(num_classes)),
        keys=tuple(
            f"class{max(c, 0):04d}/{i:07d}.jpg" for i, c in enumerate(ground_truth.tolist())
        ),
        class_ids=ground_truth.astype(np.int64),
        sizes=np.full(len(ground_truth), 100_000, np.int64),
        mtimes_ns=np.zeros(len(ground_truth), np.int64),
    )
    return create(path, images=folder, plan=plan, backend=backend, catalogue=catalogue)


def add_label_set(
    store: Store,
    codec: LabelCodec,
    num_classes: int,
    *,
    name: str,
    teacher: str | None = None,
    temperature: float = 1.0,
) -> None:
    """Register a label set, of a teacher with the same name if no other is said; no labels yet."""
    teacher = name if teacher is None else teacher
    store.catalogue.teachers.add(
        TeacherRow(
            name=teacher,
            source=f"timm:{teacher}",
            architecture=teacher,
            digest="0" * 64,
            num_classes=num_classes,
            input_size=224,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            interpolation="bilinear",
            crop_pct=0.875,
        )
    )
    store.catalogue.label_sets.add(
        LabelSetRow(
            name=name,
            plan=store.plan().name,
            teacher=teacher,
            num_classes=num_classes,
            codec=codec.to_record(),
            uuid=uuid.uuid4().hex,
            temperature=temperature,
        )
    )
    store.write_metadata()


def fill_blocks(
    store: Store,
    soft_labels: NDArray[np.float32],
    *,
    name: str,
    bad: Collection[int] = (),
    blocks: Iterable[int] | None = None,
    digests: Mapping[int, bytes] | None = None,
) -> None:
    """Commit image blocks (all that are open, or the given ones) of a label set and its plan's boxes.

    `digests` are those of images that a file is to belong to, by row.
    """
    group = f"labels/{name}"
    layout = store.group_specs(group)[1]
    wanted = range(layout.num_blocks) if blocks is None else blocks
    for block in wanted:
        lease = store.catalogue.leases.acquire(
            group, [block], "filled_store", 60.0, layout.num_crop_shards
        )
        if lease is not None:
            fill_block(store, lease, soft_labels, bad=bad, digests=digests)
            store.catalogue.leases.release(lease)
    store.refresh()


def fill_block(
    store: Store,
    lease: Lease,
    soft_labels: NDArray[np.float32],
    *,
    bad: Collection[int] = (),
    digests: Mapping[int, bytes] | None = None,
) -> None:
    """Commit the leased block of a label set, and its boxes if they are not committed yet."""
    group, plan, block = lease.group, store.plan(), lease.block
    layout = store.group_specs(group)[1]
    with_boxes = plan.stored and f"crops/{plan.name}" in store.group_names()
    boxed = store.catalogue.ledger.committed(f"crops/{plan.name}") if with_boxes else {}
    there = store.catalogue.ledger.committed(group).get(block, ())
    codec = store.label_set(group.partition("/")[2]).codec
    num_classes = soft_labels.shape[-1]
    keys = store.image_columns["key"]
    rows = layout.rows(block)
    labels = soft_labels[rows.start : rows.stop].copy()
    labels[[row - rows.start for row in bad if row in rows]] = np.nan
    crops = np.broadcast_to(np.arange(layout.num_crops), (len(rows), layout.num_crops))
    sizes = np.broadcast_to(np.array(IMAGE_SIZE), (len(rows), 2))
    boxes, flips = store.crop_plan().crops_of_images([keys[i] for i in rows], sizes, crops)
    boxes, missing = boxes.copy(), [row - rows.start for row in bad if row in rows]
    boxes[missing] = BOX.fill
    codes = flips.astype(np.uint8)
    codes[missing] = FLIP.fill
    width = layout.crops_per_shard
    shards = []
    for shard in range(layout.num_crop_shards):
        part = slice(shard * width, (shard + 1) * width)
        kept = codec.kept(num_classes)
        dense = labels[:, part]
        arrays = codec.encode(dense if kept is None else top_k(dense, kept), num_classes)
        if shard not in there:
            shards.append(BlockArrays(group=group, crop_shard=shard, arrays=arrays))
        if with_boxes and shard not in boxed.get(block, ()):
            shards.append(
                BlockArrays(
                    group=f"crops/{plan.name}",
                    crop_shard=shard,
                    arrays={"box": boxes[:, part], "flip": codes[:, part]},
                )
            )
    good = [row for row in rows if row not in bad]
    known = digests or {}
    write_block(
        store,
        lease,
        shards,
        facts=ImageFacts(
            decoded=[
                (row, IMAGE_SIZE[1], IMAGE_SIZE[0], known.get(row, b"\0" * 16)) for row in good
            ],
            bad={row: "left out on purpose" for row in rows if row in bad},
        ),
        num_images=len(good),
        seconds=float(len(good)),
        device="none",
    )
