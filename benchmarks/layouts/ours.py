"""This package's own forms: a store, and its label set laid out as flat records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import labelstore
from benchmarks.layouts.base import Crops, Layout, Parts, Reader
from benchmarks.scale_store import STORED, TARGETS, opened, write_labels
from labelstore.commit.lease_keeper import LeaseKeeper
from labelstore.store import LabelSet
from labelstore.store.layout import Layout as StoreLayout
from labelstore.store.random_batch import LabelBatch
from labelstore.store.unpacked import Unpacked

SCRATCH = "scratch"


@dataclass(frozen=True)
class Ours(Layout):
    """A store through its real write path: catalogue, leases, fsync, ledger. It keeps the tail, which no other does."""

    dtype: str = "float16"
    files_grow: bool = True
    packages: tuple[str, ...] = ("labelstore",)

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"labelstore, {self.dtype}"

    @property
    def note(self) -> str:  # type: ignore[override]
        return "with the tail mass; checksums, ledger, fsync; `batch` with its cache of chunks"

    def write(self, folder: Path, parts: Parts, num_images: int) -> None:
        target = next(t for t in TARGETS if (t.store, t.dtype) == (STORED, self.dtype))
        parts = iter(parts)
        rows, labels = next(parts)
        whole = (num_images, labels.flip.shape[1])
        with opened(folder / STORED, *whole, (target,), images_per_shard=len(rows)) as store:
            layout = StoreLayout.of(store.plan(), num_images)
            keeper = LeaseKeeper(
                store.catalogue,
                f"labels/{target.label_set}",
                layout.num_blocks,
                layout.num_crop_shards,
            )
            try:
                while (lease := keeper.acquire()) is not None:
                    assert layout.rows(lease.block) == rows, "parts are the store's image blocks"
                    write_labels(store, target, lease, layout, labels, with_boxes=True)
                    keeper.forget(lease.block)
                    rows, labels = next(parts, (range(0), labels))
            finally:
                keeper.close()

    def reader(self, folder: Path) -> Reader:
        return _OursReader(labelstore.open(folder / STORED, readonly=True))

    def prepare_remote(self, folder: Path) -> None:
        with labelstore.open(folder / STORED) as store:
            labelstore.freeze(store)

    def remote_reader(self, url: str, folder: Path, num_images: int) -> Reader | None:
        return _OursReader(labelstore.open(f"{url}/{STORED}", cache=folder))


class _OursReader(Reader):
    def __init__(self, store: labelstore.Store) -> None:
        self._store = store
        self._labels: LabelSet = store.label_set()

    def image(self, row: int) -> Crops:
        crops = np.arange(self._store.num_crops)[None]
        return _fields(self._labels.batch(np.array([row]), crops), 0)

    def batch(self, rows: NDArray[np.int64], crops: NDArray[np.int64]) -> Crops:
        return _fields(self._labels.batch(rows, crops))

    def everything(self, num_images: int) -> Iterator[Crops]:
        for block in self._labels.blocks:
            labels = self._labels.sparse(block)
            yield labels.class_ids, labels.probs, *self._labels.crops(block)

    def close(self) -> None:
        self._store.close()


@dataclass(frozen=True)
class Flat(Ours):
    """Flat records of a label set beside its store, as `unpacked` lays them out once for all processes of a node."""

    files_grow: bool = False
    is_a_copy: bool = True

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"labelstore, {self.dtype}, unpacked"

    @property
    def note(self) -> str:  # type: ignore[override]
        return "the copy on scratch, made from the store; bytes are the copy's"

    def write(self, folder: Path, parts: Parts, num_images: int) -> None:
        super().write(folder, parts, num_images)
        with labelstore.open(folder / STORED, readonly=True) as store:
            store.label_set().unpacked(folder / SCRATCH).close()

    def data(self, folder: Path) -> Path:
        return folder / SCRATCH

    def reader(self, folder: Path) -> Reader:
        store = labelstore.open(folder / STORED, readonly=True)
        return _UnpackedReader(store, store.label_set().unpacked(folder / SCRATCH))

    def remote_reader(self, url: str, folder: Path, num_images: int) -> Reader | None:
        return None


class _UnpackedReader(_OursReader):
    def __init__(self, store: labelstore.Store, flat: Unpacked) -> None:
        super().__init__(store)
        self._flat = flat

    def image(self, row: int) -> Crops:
        return _fields(self._flat.batch(np.array([row]), np.arange(self._store.num_crops)[None]), 0)

    def batch(self, rows: NDArray[np.int64], crops: NDArray[np.int64]) -> Crops:
        return _fields(self._flat.batch(rows, crops))

    def everything(self, num_images: int) -> Iterator[Crops]:
        crops = np.arange(self._store.num_crops)
        for first in range(0, num_images, 256):
            rows = np.arange(first, min(first + 256, num_images))
            yield self.batch(rows, np.broadcast_to(crops, (len(rows), len(crops))))

    def close(self) -> None:
        self._flat.close()
        super().close()


def _fields(batch: LabelBatch, at: int | slice = slice(None)) -> Crops:
    return batch.class_ids[at], batch.probs[at], batch.boxes[at], batch.flips[at]
