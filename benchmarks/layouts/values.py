"""A value per image (or per crop): LMDB, ArrayRecord, WebDataset, TinyViT's files of one epoch each."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.layouts.base import (
    RECORD,
    Crops,
    Layout,
    Parts,
    Reader,
    fields_of,
    plain,
    records,
)

TAR_IMAGES = 1024
"""Images of one WebDataset shard."""
TINYVIT = np.dtype([("seed", "<i4"), ("class_id", "<i2", 5), ("probability", "<f2", 5)])
"""A record of TinyViT: the crop's seed stands for box and flip."""


def _split(value: bytes) -> Crops:
    """An image's records (M,) -> its fields."""
    return fields_of(np.frombuffer(value, RECORD))


@dataclass(frozen=True)
class Lmdb(Layout):
    """One LMDB value per image: its records, zstd 3."""

    name: str = "LMDB, zstd per image"
    note: str = "a value per image"
    packages: tuple[str, ...] = ("lmdb", "numcodecs")

    def write(self, folder: Path, parts: Parts, num_images: int) -> None:
        import lmdb
        from numcodecs import Zstd

        folder.mkdir(parents=True)
        with lmdb.open(str(folder), map_size=1 << 36) as environment:
            for rows, labels in parts:
                with environment.begin(write=True) as transaction:
                    for row, image in zip(rows, records(labels), strict=True):
                        transaction.put(row.to_bytes(4, "big"), Zstd(3).encode(image.tobytes()))

    def reader(self, folder: Path) -> Reader:
        return _LmdbReader(folder)


class _LmdbReader(Reader):
    def __init__(self, folder: Path) -> None:
        import lmdb
        from numcodecs import Zstd

        self._environment = lmdb.open(str(folder), readonly=True, lock=False)
        self._zstd = Zstd(3)

    def image(self, row: int) -> Crops:
        with self._environment.begin(buffers=True) as transaction:
            return _split(self._zstd.decode(transaction.get(row.to_bytes(4, "big"))))

    def close(self) -> None:
        self._environment.close()


@dataclass(frozen=True)
class ArrayRecord(Layout):
    """A record per image, `group_size:1` as grain's documentation asks for random access (its own zstd)."""

    name: str = "ArrayRecord, grain"
    note: str = "a record per image, group_size:1"
    packages: tuple[str, ...] = ("array_record", "grain")

    def write(self, folder: Path, parts: Parts, num_images: int) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        folder.mkdir(parents=True)
        writer = ArrayRecordWriter(str(folder / "labels.array_record"), "group_size:1")
        for _, labels in parts:
            for image in records(labels):
                writer.write(image.tobytes())
        writer.close()

    def reader(self, folder: Path) -> Reader:
        return _ArrayRecordReader(folder)


class _ArrayRecordReader(Reader):
    def __init__(self, folder: Path) -> None:
        from grain.sources import ArrayRecordDataSource

        self._source = ArrayRecordDataSource([str(folder / "labels.array_record")])

    def image(self, row: int) -> Crops:
        return _split(self._source[row])

    def batch(self, rows: NDArray[np.int64], crops: NDArray[np.int64]) -> Crops:
        found = np.stack(
            [
                np.frombuffer(value, RECORD)[chosen]
                for value, chosen in zip(
                    self._source.__getitems__(rows.tolist()), crops, strict=True
                )
            ]
        )
        return fields_of(found)


@dataclass(frozen=True)
class WebDataset(Layout):
    """Tar shards of 1,024 images, an `.npy` of records each: read in order, by design without random access."""

    files_grow: bool = True
    name: str = "WebDataset"
    note: str = "tar shards; read in order only"
    packages: tuple[str, ...] = ("webdataset",)
    random_access: bool = False

    def write(self, folder: Path, parts: Parts, num_images: int) -> None:
        import webdataset

        folder.mkdir(parents=True)
        pattern = str(folder / "labels-%06d.tar")
        with webdataset.ShardWriter(pattern, maxcount=TAR_IMAGES, verbose=0) as writer:
            for rows, labels in parts:
                for row, image in zip(rows, records(labels), strict=True):
                    writer.write({"__key__": f"{row:08d}", "labels.bin": image.tobytes()})

    def reader(self, folder: Path) -> Reader:
        return _WebDatasetReader(folder)


@dataclass
class _WebDatasetReader(Reader):
    folder: Path

    def image(self, row: int) -> Crops:
        with tarfile.open(self.folder / f"labels-{row // TAR_IMAGES:06d}.tar") as archive:
            member = archive.extractfile(f"{row:08d}.labels.bin")
            assert member is not None
            return _split(member.read())

    def everything(self, num_images: int) -> Iterator[Crops]:
        import webdataset

        shards = [str(path) for path in sorted(self.folder.glob("labels-*.tar"))]
        for sample in webdataset.WebDataset(shards, shardshuffle=False):
            yield _split(sample["labels.bin"])


@dataclass(frozen=True)
class TinyVit(Layout):
    """TinyViT's saved logits: per epoch a file of keys and one of fixed-size records; crop m is epoch m's."""

    name: str = "TinyViT's files"
    note: str = "24 B records; a seed stands for box and flip; a file per epoch"

    def write(self, folder: Path, parts: Parts, num_images: int) -> None:
        folder.mkdir(parents=True)
        for rows, labels in parts:
            fields = plain(labels)
            found = np.zeros(labels.flip.shape, TINYVIT)
            for name in ("class_id", "probability"):
                found[name] = fields[name]
            for crop in range(labels.flip.shape[1]):
                with (folder / f"epoch{crop}-values.bin").open("ab") as file:
                    file.write(found[:, crop].tobytes())
                with (folder / f"epoch{crop}-keys.txt").open("a") as file:
                    file.writelines(f"{row}\n" for row in rows)

    def reader(self, folder: Path) -> Reader:
        return _TinyVitReader(folder)


class _TinyVitReader(Reader):
    """Seeks and reads a record, as TinyViT's own reader does; keys are held in memory."""

    def __init__(self, folder: Path) -> None:
        self._files: list[Any] = []
        self._places: list[dict[int, int]] = []
        for crop in range(len(list(folder.glob("epoch*-keys.txt")))):
            self._files.append((folder / f"epoch{crop}-values.bin").open("rb"))
            keys = (folder / f"epoch{crop}-keys.txt").read_text().split()
            self._places.append({int(key): at for at, key in enumerate(keys)})

    def image(self, row: int) -> Crops:
        return self._some(np.array([row]), np.arange(len(self._files))[None], (len(self._files),))

    def batch(self, rows: NDArray[np.int64], crops: NDArray[np.int64]) -> Crops:
        return self._some(rows, crops, crops.shape)

    def everything(self, num_images: int) -> Iterator[Crops]:
        for file in self._files:
            file.seek(0)
            yield self._split(np.frombuffer(file.read(), TINYVIT))

    def _some(
        self, rows: NDArray[np.int64], crops: NDArray[np.int64], shape: tuple[int, ...]
    ) -> Crops:
        data = io.BytesIO()
        for row, chosen in zip(rows.tolist(), crops.tolist(), strict=True):
            for crop in chosen:
                self._files[crop].seek(self._places[crop][row] * TINYVIT.itemsize)
                data.write(self._files[crop].read(TINYVIT.itemsize))
        return self._split(np.frombuffer(data.getvalue(), TINYVIT).reshape(shape))

    @staticmethod
    def _split(found: NDArray[np.void]) -> Crops:
        nothing = np.zeros((*found.shape, 0))
        return found["class_id"].view("<u2"), found["probability"], nothing, nothing

    def close(self) -> None:
        for file in self._files:
            file.close()
