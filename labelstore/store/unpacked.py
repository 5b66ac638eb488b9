"""A label set laid out once as flat records, which every process of a node maps (`LabelSet.unpacked`).

In a kept folder (`labelstore.scratch.kept`) `SCRATCH/labelstore-unpacked/DIGEST`, DIGEST being of the committed files
and everything else that decides what is in it, so that later runs find it and a store that changed gets another:

    unpacked.json       what the digest is of
    crops.npy           (rows, M) records: the label as stored, box, flip (`flat_records`)
    images.npy          (rows, crop shards) records of what the codec keeps per image, where it does
    crops.crc32c        CRC-32C of every image block's rows, little-endian uint32, written after the file is whole

A mask has a folder of its own, with `regions.npy` (rows, M). Each process checks a block's rows when it first takes
some; rows that are not those that were written are laid out again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.arrays.sharding import crc32c
from labelstore.errors import IncompleteError, StorageError
from labelstore.scratch.folders import scratch_parent, storage_errors
from labelstore.scratch.kept import KeptFolder, write_whole, written_alone
from labelstore.scratch.npy_writer import NpyWriter, write_at
from labelstore.scratch.room import check_room
from labelstore.store.flat_records import RecordForm, Records, opaque
from labelstore.store.group import shards_digest
from labelstore.store.random_batch import Crops, LabelBatch, batch_of

if TYPE_CHECKING:
    from labelstore.store.label_set import Images, LabelSet
    from labelstore.store.region_mask import Mask

FOLDER = "labelstore-unpacked"
ABOUT = "unpacked.json"
FORMAT = 1
THREADS = 2
WIDE_BLOCK = 64 << 20
"""Bytes of one image block's records above which blocks are laid out one at a time."""


class Unpacked:
    """The labels, boxes and flips of one label set as they were when it was unpacked."""

    def __init__(self, labels: LabelSet, scratch: Path | str) -> None:
        """Lay the label set out in `scratch`, or find it laid out there.

        IncompleteError for a label set that is not complete, UsageError for a scratch folder in shared memory,
        StorageError where the records do not fit, DamagedShard for bytes that are not the ledger's.
        """
        if not labels.is_complete:
            raise IncompleteError(
                f"label set {labels.name}: {len(labels.blocks)} of {labels.layout.num_blocks} image blocks "
                "are complete; finish it with the same `labelstore.generate` or `labelstore.grow`, then unpack it"
            )
        self.labels, self.form = labels, RecordForm.of(labels)
        self._root = scratch_parent(Path(scratch)) / FOLDER
        self._masks: dict[str, tuple[KeptFolder, FlatFile]] = {}
        self._map(KeptFolder.open(self._root, ABOUT, _described(labels, self.form)))

    def _map(self, folder: KeptFolder) -> None:
        labels, form = self.labels, self.form
        self._folder = folder
        self._crops = FlatFile(
            folder.path / "crops.npy",
            labels,
            labels.num_crops,
            form.dtype,
            lambda block: form.crop_records(labels, block),
        )
        self._images = (
            FlatFile(
                folder.path / "images.npy",
                labels,
                labels.group.layout.num_crop_shards,
                form.image_dtype,
                lambda block: form.image_records(labels, block),
            )
            if form.per_image
            else None
        )

    def __getstate__(self) -> dict[str, Any]:
        # a worker process maps the same files
        return {"labels": self.labels, "root": self._root, "path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.labels, self._root = state["labels"], state["root"]
        self.form, self._masks = RecordForm.of(self.labels), {}
        self._map(KeptFolder.attach(state["path"]))

    @property
    def path(self) -> Path:
        """The folder of the files."""
        return self._folder.path

    @property
    def bytes_per_crop(self) -> float:
        """What the files take, per crop; without masks."""
        files = [file for file in (self._crops, self._images) if file is not None]
        return sum(file.nbytes for file in files) / (
            self.labels.layout.num_rows * self.labels.num_crops
        )

    def batch(
        self,
        images: Images,
        crops: Crops | None = None,
        *,
        temperature: float | None = None,
        mask: Mask | None = None,
    ) -> LabelBatch:
        """As `LabelSet.batch`, from the files; a mask is laid out beside them when it is first asked for."""
        return batch_of(self, images, crops, temperature, mask)

    def close(self) -> None:
        """Give the files up; they stay for the next process that unpacks the label set."""
        for folder, _ in self._masks.values():
            folder.close()
        self._folder.close()

    def records(self, rows: NDArray[np.int64], crops: NDArray[np.int64]) -> Records:
        """Records (B, m) of crops (B, m) of image rows (B,), copied."""
        return self._crops.take(rows, crops)

    def image_records(self, rows: NDArray[np.int64], shards: NDArray[np.int64]) -> Records:
        """Records (P,) of what is kept per image, of image rows (P,) in crop shards (P,)."""
        assert self._images is not None
        found: Records = self._images.take(rows, shards[:, None])[:, 0]
        return found

    def regions(
        self, mask: Mask, rows: NDArray[np.int64], crops: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Region codes (B, m) of crops (B, m) of image rows (B,)."""
        if mask.identity not in self._masks:
            self._masks[mask.identity] = self._unpacked_mask(mask)
        return self._masks[mask.identity][1].take(rows, crops)

    def _unpacked_mask(self, mask: Mask) -> tuple[KeptFolder, FlatFile]:
        labels = self.labels
        columns = range(labels.layout.num_columns)
        described = {
            "format": FORMAT,
            "store": labels.store.uuid,
            "mask": mask.name,
            "regions": shards_digest(
                labels.store.catalogue, f"masks/{mask.name}", labels.layout.num_crop_shards
            ),
            "rows": labels.layout.num_rows,
            "num_crops": labels.num_crops,
        }
        folder = KeptFolder.open(self._root, ABOUT, described)
        file = FlatFile(
            folder.path / "regions.npy",
            labels,
            labels.num_crops,
            np.dtype(np.uint8),
            lambda block: mask.regions(block, columns),
        )
        return folder, file


class FlatFile:
    """A file of (rows, width) values, mapped; written block by block if it is not there."""

    def __init__(
        self,
        path: Path,
        labels: LabelSet,
        width: int,
        dtype: np.dtype[Any],
        make: Callable[[int], NDArray[Any]],
    ) -> None:
        self._path, self._make = path, make
        self._layout = labels.layout
        self._width, self._dtype = width, dtype
        self._checked, self._all_checked = np.zeros(self._layout.num_blocks, bool), False
        self._open()

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self._layout.num_rows * self._width * self._dtype.itemsize

    def take(self, rows: NDArray[np.int64], at: NDArray[np.int64]) -> NDArray[Any]:
        """Values (B, m) at places (B, m) of rows (B,), copied."""
        if not self._all_checked:
            blocks = rows // self._layout.images_per_shard
            for block in np.unique(blocks[~self._checked[blocks]]).tolist():
                self._check(block)
            self._all_checked = bool(self._checked.all())
        # "clip" spares NumPy a copy; every index is inside
        found = self._flat.take(rows[:, None] * self._width + at, mode="clip")
        return found.view(self._dtype)

    def _open(self) -> None:
        if not self._mapped():
            with written_alone(self._path.parent):
                if not self._mapped():
                    self._write()
                    if not self._mapped():
                        raise StorageError(
                            f"{self._path} was removed while it was written; choose another scratch folder"
                        )

    def _mapped(self) -> bool:
        """Map the file if it is there and whole, as far as its size and that of its checksums say."""
        with suppress(OSError, ValueError, EOFError):
            seal = self._seal.read_bytes()
            values = np.load(self._path, mmap_mode="r")
            shape = (self._layout.num_rows, self._width)
            if (
                values.shape == shape
                and values.dtype == self._dtype
                and len(seal) == 4 * len(self._checked)
            ):
                self._crcs = np.frombuffer(seal, "<u4").copy()
                # a plain array over the same memory: NumPy's maps are slow to index
                self._flat = opaque(np.asarray(values)).reshape(-1)
                return True
        return False

    @property
    def _seal(self) -> Path:
        return self._path.with_suffix(".crc32c")

    def _write(self) -> None:
        folder, layout = self._path.parent, self._layout
        with storage_errors(folder):
            self._seal.unlink(missing_ok=True)
            for begun in folder.glob(f".{self._path.name}.*.tmp"):
                begun.unlink(missing_ok=True)  # of a process that was killed: this one writes alone
        check_room(folder, self.nbytes)
        shape = (layout.num_rows, self._width)
        block_bytes = ceil(self.nbytes / layout.num_blocks)
        with (
            NpyWriter(self._path, shape, self._dtype) as writer,
            ThreadPoolExecutor(1 if block_bytes > WIDE_BLOCK else THREADS) as pool,
        ):

            def lay_out(block: int) -> int:
                values = np.ascontiguousarray(self._make(block))
                writer.write(layout.rows(block).start, values)
                return _crc(values)

            crcs = np.array(list(pool.map(lay_out, range(layout.num_blocks))), "<u4")
        with storage_errors(folder):
            write_whole(self._seal, crcs.tobytes())

    def _check(self, block: int) -> None:
        """Compare a block's rows with their checksum; lay them out again where they differ."""
        rows = self._layout.rows(block)
        part = slice(rows.start * self._width, rows.stop * self._width)
        if _crc(self._flat[part]) != self._crcs[block]:
            values = np.ascontiguousarray(self._make(block))
            with written_alone(self._path.parent), storage_errors(self._path):
                offset = self._path.stat().st_size - self.nbytes
                handle = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
                try:
                    write_at(handle, offset + part.start * self._dtype.itemsize, values)
                finally:
                    os.close(handle)
                self._crcs[block] = _crc(values)
                write_whole(self._seal, self._crcs.tobytes())
        self._checked[block] = True


def _crc(values: NDArray[Any]) -> int:
    data = values.reshape(-1).view(np.uint8)
    data.flags.writeable = False
    return crc32c(data)


def _described(labels: LabelSet, form: RecordForm) -> dict[str, Any]:
    """Everything that decides what is in the files."""
    store, plan, layout = labels.store, labels.plan, labels.layout
    columns = store.image_columns
    images = hashlib.sha256("\0".join(map(str, columns["key"].tolist())).encode())
    for name in ("height", "width"):
        images.update(columns[name].astype("<i8").tobytes())

    def shards(group: str) -> str:
        return shards_digest(store.catalogue, group, layout.num_crop_shards)

    return {
        "format": FORMAT,
        "store": store.uuid,
        "label_set": labels.row.uuid,
        "labels": shards(f"labels/{labels.name}"),
        "crops": shards(f"crops/{plan.name}"),
        "plan": {"name": plan.name, **plan.parameters},
        "rows": layout.num_rows,
        "num_crops": layout.num_crops,
        "crops_per_shard": layout.crops_per_shard,
        "images": images.hexdigest(),
        "record": str(form.dtype),
        "image_record": str(form.image_dtype),
    }
