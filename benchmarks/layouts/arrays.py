"""Arrays (N, M, ...) per field: flat records in one file, HDF5, Zarr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.layouts.base import (
    FIELDS,
    RECORD,
    Crops,
    Layout,
    Parts,
    Reader,
    fields_of,
    plain,
    records,
)

ZARR_CHUNK, ZARR_SHARD = 16, 1024
"""Images in a chunk, of about 1 MB raw for all fields at M = 200, and in a shard (one file)."""


@dataclass(frozen=True)
class Memmap(Layout):
    """One `.npy` file of records (N, M); what a lab writes when it writes its own."""

    name: str = "np.memmap of records"
    note: str = "29 B records, no compression, no checksum"

    def write(self, folder: Path, parts: Parts, num_images: int) -> None:
        folder.mkdir(parents=True)
        array = None
        for rows, labels in parts:
            if array is None:
                shape = (num_images, labels.flip.shape[1])
                array = np.lib.format.open_memmap(
                    folder / "labels.npy", "w+", dtype=RECORD, shape=shape
                )
            array[rows.start : rows.stop] = records(labels)
        assert array is not None
        array.flush()

    def reader(self, folder: Path) -> Reader:
        return _MemmapReader(folder)


class _MemmapReader(Reader):
    def __init__(self, folder: Path) -> None:
        found = np.load(folder / "labels.npy", mmap_mode="r")
        # as bytes without fields: NumPy copies such records five times as fast
        self._bytes = np.asarray(found).view(f"V{RECORD.itemsize}")

    def image(self, row: int) -> Crops:
        return fields_of(np.array(self._bytes[row]).view(RECORD))

    def batch(self, rows: NDArray[np.int64], crops: NDArray[np.int64]) -> Crops:
        return fields_of(self._bytes[rows[:, None], crops].view(RECORD))

    def everything(self, num_images: int) -> Iterator[Crops]:
        for first in range(0, num_images, 256):
            yield fields_of(np.array(self._bytes[first : first + 256]).view(RECORD))

    def close(self) -> None:
        del self._bytes


@dataclass(frozen=True)
class Hdf5(Layout):
    """One HDF5 file, a dataset per field. Plain: contiguous. Otherwise a chunk per image, shuffle and gzip 4."""

    compressed: bool = False
    note: str = "uint16, float16"
    packages: tuple[str, ...] = ("h5py",)

    @property
    def name(self) -> str:  # type: ignore[override]
        return "HDF5, chunk per image, gzip" if self.compressed else "HDF5, contiguous"

    def write(self, folder: Path, parts: Parts, num_images: int) -> None:
        import h5py

        folder.mkdir(parents=True)
        with h5py.File(folder / "labels.h5", "w") as file:
            for rows, labels in parts:
                for name, array in plain(labels).items():
                    options: dict[str, Any] = {}
                    if self.compressed:
                        options = {
                            "chunks": (1, *array.shape[1:]),
                            "compression": 4,
                            "shuffle": True,
                        }
                    if name not in file:
                        shape = (num_images, *array.shape[1:])
                        file.create_dataset(name, shape=shape, dtype=array.dtype, **options)
                    file[name][rows.start : rows.stop] = array

    def reader(self, folder: Path) -> Reader:
        return _Hdf5Reader(folder / "labels.h5")

    def remote_reader(self, url: str, folder: Path, num_images: int) -> Reader:
        from benchmarks.layouts.served import RangeFile

        return _Hdf5Reader(RangeFile(f"{url}/labels.h5"))


class _Hdf5Reader(Reader):
    def __init__(self, file: Any) -> None:
        import h5py

        self._file = h5py.File(file, "r")
        self._fields = [self._file[name] for name in FIELDS]

    def image(self, row: int) -> Crops:
        ids, probs, box, flip = (field[row] for field in self._fields)
        return ids, probs, box, flip

    def everything(self, num_images: int) -> Iterator[Crops]:
        for first in range(0, num_images, 256):
            ids, probs, box, flip = (field[first : first + 256] for field in self._fields)
            yield ids, probs, box, flip

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class Zarr(Layout):
    """An array per field, zarr-python's own defaults (zstd) in chunks of 16 images, sharded; read by either pipeline."""

    zarrs: bool = False
    files_grow: bool = True
    note: str = "zstd, 16 images in a chunk, 1,024 in a shard"

    @property
    def name(self) -> str:  # type: ignore[override]
        return "Zarr, zarrs" if self.zarrs else "Zarr, zarr-python"

    @property
    def packages(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("zarr", "zarrs") if self.zarrs else ("zarr",)

    def write(self, folder: Path, parts: Parts, num_images: int) -> None:
        import zarr

        with self._pipeline():
            group = None
            for rows, labels in parts:
                if group is None:
                    group = zarr.create_group(folder)
                    for name, array in plain(labels).items():
                        group.create_array(
                            name,
                            shape=(num_images, *array.shape[1:]),
                            dtype=array.dtype,
                            chunks=(ZARR_CHUNK, *array.shape[1:]),
                            shards=(ZARR_SHARD, *array.shape[1:]),
                        )
                for name, array in plain(labels).items():
                    group[name][rows.start : rows.stop] = array  # type: ignore[index]

    def reader(self, folder: Path) -> Reader:
        return _ZarrReader(self, str(folder))

    def remote_reader(self, url: str, folder: Path, num_images: int) -> Reader | None:
        if self.zarrs:
            return None  # reads local files only
        from obstore.store import HTTPStore
        from zarr.storage import ObjectStore

        return _ZarrReader(self, ObjectStore(HTTPStore(url, client_options={"allow_http": True})))

    def _pipeline(self) -> Any:
        import zarr

        if not self.zarrs:
            return nullcontext()
        import zarrs  # noqa: F401

        return zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})


class _ZarrReader(Reader):
    def __init__(self, layout: Zarr, place: Any) -> None:
        import zarr

        self._layout = layout
        with layout._pipeline():
            group = zarr.open_group(place, mode="r")
            self._fields: list[Any] = [group[name] for name in FIELDS]

    def image(self, row: int) -> Crops:
        return self._some(row)

    def batch(self, rows: NDArray[np.int64], crops: NDArray[np.int64]) -> Crops:
        images, where = np.unique(rows, return_inverse=True)
        with self._layout._pipeline():
            fields = [field.oindex[images] for field in self._fields]
        ids, probs, box, flip = (field[where[:, None], crops] for field in fields)
        return ids, probs, box, flip

    def everything(self, num_images: int) -> Iterator[Crops]:
        for first in range(0, num_images, ZARR_SHARD):
            yield self._some(slice(first, first + ZARR_SHARD))

    def _some(self, rows: Any) -> Crops:
        with self._layout._pipeline():
            ids, probs, box, flip = (np.asarray(field[rows]) for field in self._fields)
        return ids, probs, box, flip
