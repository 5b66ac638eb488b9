"""What the loader benchmark reads: real photographs as JPEG files, a store with labels for them, FKD's files beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import labelstore
from benchmarks import fkd_loader, label_model
from benchmarks.scale_store import NUM_CLASSES, K, image_folder, top_k_of
from labelstore import PlanOptions
from labelstore.codecs import MarginalSmoothing
from labelstore.commit.staging import BlockArrays, ImageFacts, write_block
from labelstore.images import ImageFolder, scan_folder
from labelstore.store import LabelSet, Store
from labelstore.testing.digit_pictures import photographs
from labelstore.testing.filled_store import add_label_set

WIDTH, HEIGHT = 500, 375
LARGE = 4
"""2000 x 1500 photographs are `LARGE` times as wide and high."""
QUALITY = 95
FKD_FILES = "fkd"


@dataclass(frozen=True, kw_only=True)
class LoaderData:
    """A folder of images, the labels of its crops, and the same labels as FKD's files."""

    images: ImageFolder
    labels: LabelSet
    fkd: Path
    bytes_per_image: float
    """Mean over the JPEG files."""

    @property
    def keys(self) -> Sequence[str]:
        return self.images.keys


def picture_data(
    folder: Path, num_images: int, num_crops: int, *, large: bool = False
) -> LoaderData:
    """`num_images` JPEG files of 500 x 375 (or 2000 x 1500), with M = `num_crops` labelled crops each."""
    width, height = (WIDTH * LARGE, HEIGHT * LARGE) if large else (WIDTH, HEIGHT)
    size = write_photographs(folder / "images", num_images, width, height)
    images = scan_folder(folder / "images")
    # a thousand classes, as ImageNet has, whatever the few images are of
    classes = tuple(f"class{number:04d}" for number in range(NUM_CLASSES))
    images = dataclasses.replace(images, classes=classes)
    labels = labelled(folder / "labels", images, num_crops, (height, width))
    fkd_loader.write_files(labels, folder / FKD_FILES, range(num_images))
    return LoaderData(
        images=images, labels=labels, fkd=folder / FKD_FILES, bytes_per_image=size / num_images
    )


def label_data(folder: Path, num_images: int, num_crops: int, num_files: int) -> LoaderData:
    """Labels without images, for the label side; FKD's files of the first `num_files` images."""
    images = image_folder(num_images, 1024)
    labels = labelled(folder / "labels", images, num_crops, (HEIGHT, WIDTH))
    fkd_loader.write_files(labels, folder / FKD_FILES, range(num_files))
    return LoaderData(images=images, labels=labels, fkd=folder / FKD_FILES, bytes_per_image=0)


def write_photographs(folder: Path, count: int, width: int, height: int) -> int:
    """Real photographs, each cut at another place, as JPEG files; bytes in all.

    Larger files are put together from as many photographs at their own resolution: enlarged ones would be smooth, and
    so quicker to decode than what a camera makes.
    """
    rng = np.random.default_rng(0)
    pictures = [p for p in photographs() if p.width >= WIDTH and p.height >= HEIGHT]
    total, nth = 0, 0
    for number in range(count):
        whole = Image.new("RGB", (width, height))
        for top in range(0, height, HEIGHT):
            for left in range(0, width, WIDTH):
                picture = pictures[nth % len(pictures)]
                nth += 1
                x = int(rng.integers(picture.width - WIDTH + 1))
                y = int(rng.integers(picture.height - HEIGHT + 1))
                whole.paste(picture.crop((x, y, x + WIDTH, y + HEIGHT)), (left, top))
        path = folder / f"class{number % 2:04d}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        whole.save(path, quality=QUALITY)
        total += path.stat().st_size
    return total


def labelled(path: Path, images: ImageFolder, num_crops: int, size: tuple[int, int]) -> LabelSet:
    """A new store with labels of the label model, K = 5 of 1,000 classes, float16; all images of one size."""
    store = labelstore.create(path, images=images, plan=PlanOptions(num_crops=num_crops))
    add_label_set(store, MarginalSmoothing(k=K, class_ids="plain"), NUM_CLASSES, name="teacher")
    _, layout = store.group_specs("labels/teacher")
    for block in range(layout.num_blocks):
        _write_block(store, block, size)
    store.refresh()
    return store.label_set("teacher")


def _write_block(store: Store, block: int, size: tuple[int, int]) -> None:
    group = "labels/teacher"
    _, layout = store.group_specs(group)
    rows, plan = layout.rows(block), store.plan()
    codec = store.label_set("teacher").codec
    labels = label_model.labels(rows.start, len(rows), layout.num_crops, k=K)
    crops = np.broadcast_to(np.arange(layout.num_crops), (len(rows), layout.num_crops))
    keys = [str(store.image_columns["key"][row]) for row in rows]
    sizes = np.broadcast_to(np.array(size), (len(rows), 2))
    boxes, flips = store.crop_plan().crops_of_images(keys, sizes, crops)
    shards, per = [], layout.crops_per_shard
    for number in range(layout.num_crop_shards):
        cut = slice(number * per, (number + 1) * per)
        arrays = codec.encode(top_k_of(labels, cut), NUM_CLASSES)
        shards.append(BlockArrays(group=group, crop_shard=number, arrays=arrays))
        arrays = {"box": boxes[:, cut], "flip": flips[:, cut].astype(np.uint8)}
        shards.append(BlockArrays(group=f"crops/{plan.name}", crop_shard=number, arrays=arrays))
    lease = store.catalogue.leases.acquire(
        group, [block], "benchmark", 600.0, layout.num_crop_shards
    )
    assert lease is not None
    decoded = [(row, size[1], size[0], b"\0" * 16) for row in rows]
    write_block(
        store, lease, shards, facts=ImageFacts(decoded=decoded), num_images=len(rows), device="none"
    )
    store.catalogue.leases.release(lease)
