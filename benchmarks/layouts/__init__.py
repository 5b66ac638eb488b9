"""The same labels in other layouts: what they cost on disk, how fast they are written and read."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.layouts.arrays import Hdf5, Memmap, Zarr
from benchmarks.layouts.base import Layout, Parts, Reader
from benchmarks.layouts.ours import Flat, Ours
from benchmarks.layouts.pickles import Fkd
from benchmarks.layouts.tables import Lance, Parquet, Vortex
from benchmarks.layouts.values import ArrayRecord, Lmdb, TinyVit, WebDataset

IN_USE: tuple[Layout, ...] = (
    Fkd(),
    Fkd(safe=True),
    Hdf5(),
    Hdf5(compressed=True),
    Lmdb(),
    Parquet(),
)
"""What labels are kept in elsewhere, besides flat files."""
LAYOUTS: tuple[Layout, ...] = (
    Ours(),
    Ours(dtype="uint8"),
    Flat(),
    Memmap(),
    Vortex(),
    Lance(),
    ArrayRecord(),
    WebDataset(),
    Zarr(),
    Zarr(zarrs=True),
    TinyVit(),
    *IN_USE,
)


def measure(
    layout: Layout,
    folder: Path,
    parts: Callable[[], Parts],
    *,
    num_images: int,
    num_crops: int,
    crops_per_image: int,
    samples: int,
    seed: int = 5,
) -> dict[str, Any]:
    """Bytes per crop, writing, one random image, and labels of one pass as a loader draws them.

    A pass reads images in random order and keeps m of each image's crops; `samples` images of it are timed after they
    were read once. Parquet, which would decode a row group for each, reads all of it in order. What was written is
    read back and compared.
    """
    seconds = 0.0
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        begun = time.perf_counter()
        layout.write(folder, parts(), num_images)
        seconds = time.perf_counter() - begun
    size = disk(layout, folder)
    reader = layout.reader(folder)
    try:
        check(reader, parts())
        rows = random.Random(seed).sample(range(num_images), min(samples, num_images))
        draw = np.random.default_rng(seed)

        def one(row: int) -> None:
            chosen = draw.integers(num_crops, size=crops_per_image)
            for field in reader.image(row):
                field[chosen]

        for row in rows:
            one(row)
        spent = [_timed(lambda row=row: one(row)) for row in rows]
        in_pass = sum(spent) / len(spent)
        if isinstance(layout, Parquet):
            in_pass = _timed(lambda: list(reader.everything(num_images))) / num_images
    finally:
        reader.close()
    crops = num_images * num_crops
    return {
        "layout": layout.name,
        "note": layout.note,
        "images": num_images,
        "bytes_per_crop": size["bytes"] / crops,
        "bytes_per_crop_in_blocks": size["blocks"] / crops,
        "files": size["files"],
        "write_crops_per_s": crops / seconds if seconds else None,
        "random_image_ms": 1e3 * float(np.median(spent)),
        "pass_crops_per_s": crops_per_image / in_pass,
    }


def disk(layout: Layout, folder: Path) -> dict[str, int]:
    """Files of a layout, their bytes, and the bytes of the blocks that they occupy."""
    files = [path.stat() for path in layout.data(folder).rglob("*") if path.is_file()]
    return {
        "files": len(files),
        "bytes": sum(file.st_size for file in files),
        "blocks": sum(512 * file.st_blocks for file in files),
    }


def check(reader: Reader, parts: Parts) -> None:
    """AssertionError where the first image reads otherwise than it was written."""
    rows, labels = next(iter(parts))
    ids, probs, _, flip = reader.image(rows.start)
    assert (ids == labels.class_ids[0]).all()
    assert np.abs(probs.astype(np.float32) - labels.probs[0]).max() < 1e-2
    assert flip.size == 0 or (flip.astype(bool) == labels.flip[0]).all()


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
