"""The same labels in other layouts, with readers of our own: FKD's files, HDF5, LMDB, Parquet.

Each holds what FKD's files hold: class ids and probabilities (K = 5), boxes, flips, without the tail. A layout writes
image by image in storage order, and reads one image's crops by its row. Formats that can hold float16 and uint16
get them; FKD's files are float32, as its generator writes them.
"""

from __future__ import annotations

import io
import pickle
import random
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.label_model import ModelLabels

PARQUET_ROW_GROUP = 1024
"""Images."""
Crops = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]
"""Class ids (M, K), probabilities (M, K), boxes (M, 4), flips (M,) of one image."""


class Layout(Protocol):
    name: str
    note: str

    def write(self, folder: Path, parts: Iterator[tuple[range, ModelLabels]]) -> None:
        """All images, part by part."""

    def reader(self, folder: Path) -> Reader:
        """Open what was written."""


class Reader(Protocol):
    def image(self, row: int) -> Crops:
        """All crops of one image."""

    def close(self) -> None:
        """Let go of the files."""


@dataclass(frozen=True)
class Fkd:
    """FKD's files: one `torch.save` of [coordinates, flip, labels] per image, in folders by class.

    `safe` reads them without torch: the pickle inside, with five names that it may mention.
    """

    safe: bool = False

    @property
    def name(self) -> str:
        return "FKD's files, own reader" if self.safe else "FKD's files, torch.load"

    @property
    def note(self) -> str:
        return "float32; fractions of the image side"

    def write(self, folder: Path, parts: Iterator[tuple[range, ModelLabels]]) -> None:
        import torch

        for rows, labels in parts:
            for at, row in enumerate(rows):
                path = self._path(folder, row)
                path.parent.mkdir(parents=True, exist_ok=True)
                height, width = labels.size[at].astype(np.float32)
                coordinates = labels.box[at] / np.array([height, width, height, width], np.float32)
                both = np.stack([labels.class_ids[at].astype(np.float32), labels.probs[at]], axis=1)
                torch.save([coordinates.astype(np.float32), labels.flip[at], both], path)

    def reader(self, folder: Path) -> Reader:
        return _FkdReader(folder, self._path, self._load_safely if self.safe else self._load)

    @staticmethod
    def _path(folder: Path, row: int) -> Path:
        return (
            folder / "imagenet" / "train" / f"n{row // 1300:08d}" / f"n{row // 1300:08d}_{row}.tar"
        )

    @staticmethod
    def _load(path: Path) -> list[NDArray[Any]]:
        import torch

        with torch.serialization.safe_globals(_torch_names()):
            found: list[NDArray[Any]] = torch.load(path, weights_only=True)
        return found

    @staticmethod
    def _load_safely(path: Path) -> list[NDArray[Any]]:
        with zipfile.ZipFile(path) as archive:
            (entry,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
            data = archive.read(entry)
        found: list[NDArray[Any]] = _ArraysOnly(io.BytesIO(data)).load()
        return found


class _ArraysOnly(pickle.Unpickler):
    ALLOWED = frozenset(
        {
            ("numpy", "dtype"),
            ("numpy", "ndarray"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a label file")
        return super().find_class(module, name)


def _torch_names() -> list[Any]:
    import _codecs

    reconstruct = np._core.multiarray._reconstruct
    dtypes = [type(np.dtype(code)) for code in ("f4", "f2", "?", "i8")]
    return [reconstruct, np.ndarray, np.dtype, _codecs.encode, *dtypes]


@dataclass
class _FkdReader:
    folder: Path
    path: Callable[[Path, int], Path]
    load: Callable[[Path], list[NDArray[Any]]]

    def image(self, row: int) -> Crops:
        coordinates, flip, labels = self.load(self.path(self.folder, row))
        return labels[:, 0], labels[:, 1], coordinates, flip

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Hdf5:
    """One HDF5 file, a dataset per field. Plain: contiguous. Otherwise a chunk per image, shuffle and gzip 4."""

    compressed: bool = False

    @property
    def name(self) -> str:
        return "HDF5, chunk per image, gzip" if self.compressed else "HDF5, contiguous"

    @property
    def note(self) -> str:
        return "uint16, float16"

    def write(self, folder: Path, parts: Iterator[tuple[range, ModelLabels]]) -> None:
        import h5py

        folder.mkdir(parents=True)
        with h5py.File(folder / "labels.h5", "w") as file:
            for rows, labels in parts:
                for name, array in _plain(labels).items():
                    options: dict[str, Any] = {}
                    if self.compressed:
                        options = {
                            "chunks": (1, *array.shape[1:]),
                            "compression": 4,
                            "shuffle": True,
                        }
                    if name not in file:
                        # grown at the end: contiguous datasets cannot, so they get their size at once
                        total = (_num_images(folder), *array.shape[1:])
                        file.create_dataset(name, shape=total, dtype=array.dtype, **options)
                    file[name][rows.start : rows.stop] = array

    def reader(self, folder: Path) -> Reader:
        return _Hdf5Reader(folder)


class _Hdf5Reader:
    def __init__(self, folder: Path) -> None:
        import h5py

        self._file = h5py.File(folder / "labels.h5", "r")
        self._fields = [self._file[name] for name in ("class_id", "probability", "box", "flip")]

    def image(self, row: int) -> Crops:
        ids, probs, box, flip = (field[row] for field in self._fields)
        return ids, probs, box, flip

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class Lmdb:
    """One LMDB value per image: its fields' bytes behind one another, zstd 3."""

    name: str = "LMDB, zstd per image"
    note: str = "uint16, float16"

    def write(self, folder: Path, parts: Iterator[tuple[range, ModelLabels]]) -> None:
        import lmdb
        from numcodecs import Zstd

        folder.mkdir(parents=True)
        with lmdb.open(str(folder), map_size=1 << 36) as environment:
            for rows, labels in parts:
                fields = _plain(labels)
                with environment.begin(write=True) as transaction:
                    for at, row in enumerate(rows):
                        value = b"".join(array[at].tobytes() for array in fields.values())
                        transaction.put(row.to_bytes(4, "big"), Zstd(3).encode(value))

    def reader(self, folder: Path) -> Reader:
        return _LmdbReader(folder)


class _LmdbReader:
    BYTES_PER_CROP = 10 + 10 + 8 + 1

    def __init__(self, folder: Path) -> None:
        import lmdb
        from numcodecs import Zstd

        self._environment = lmdb.open(str(folder), readonly=True, lock=False)
        self._zstd = Zstd(3)

    def image(self, row: int) -> Crops:
        with self._environment.begin(buffers=True) as transaction:
            value = self._zstd.decode(transaction.get(row.to_bytes(4, "big")))
        m = len(value) // self.BYTES_PER_CROP
        return (
            np.frombuffer(value, "<u2", 5 * m).reshape(m, 5),
            np.frombuffer(value, "<f2", 5 * m, 10 * m).reshape(m, 5),
            np.frombuffer(value, "<u2", 4 * m, 20 * m).reshape(m, 4),
            np.frombuffer(value, "u1", m, 28 * m),
        )

    def close(self) -> None:
        self._environment.close()


@dataclass(frozen=True)
class Parquet:
    """A row per image, fixed-size lists, zstd, row groups of 1,024 images; an image costs its row group."""

    name: str = "Parquet, zstd"
    note: str = (
        "uint16, float16; an image costs a row group of 1,024; its pass goes in storage order"
    )

    def write(self, folder: Path, parts: Iterator[tuple[range, ModelLabels]]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder.mkdir(parents=True)
        writer = None
        for _, labels in parts:
            columns = {}
            for name, array in _plain(labels).items():
                flat = pa.array(np.ascontiguousarray(array).reshape(-1))
                columns[name] = pa.FixedSizeListArray.from_arrays(flat, array[0].size)
            table = pa.table(columns)
            if writer is None:
                writer = pq.ParquetWriter(
                    folder / "labels.parquet",
                    table.schema,
                    compression="zstd",
                    use_dictionary=False,
                )
            writer.write_table(table, row_group_size=PARQUET_ROW_GROUP)
        assert writer is not None
        writer.close()

    def reader(self, folder: Path) -> Reader:
        return _ParquetReader(folder)


class _ParquetReader:
    def __init__(self, folder: Path) -> None:
        import pyarrow.parquet as pq

        self._file = pq.ParquetFile(folder / "labels.parquet")
        self._group = -1
        self._fields: list[NDArray[Any]] = []

    def image(self, row: int) -> Crops:
        group, at = divmod(row, PARQUET_ROW_GROUP)
        if group != self._group:
            table = self._file.read_row_group(group)
            self._fields, self._group = [], group
            for name in ("class_id", "probability", "box", "flip"):
                column = table.column(name).combine_chunks()
                flat = column.values.to_numpy(zero_copy_only=False)
                self._fields.append(flat.reshape(len(column), -1))
        ids, probs, box, flip = (field[at] for field in self._fields)
        m = len(flip)
        return ids.reshape(m, -1), probs.reshape(m, -1), box.reshape(m, 4), flip

    def close(self) -> None:
        self._file.close()


LAYOUTS: tuple[Layout, ...] = (
    Fkd(),
    Fkd(safe=True),
    Hdf5(),
    Hdf5(compressed=True),
    Lmdb(),
    Parquet(),
)
COUNT = "num_images"


def _plain(labels: ModelLabels) -> dict[str, NDArray[Any]]:
    return {
        "class_id": labels.class_ids.astype("<u2"),
        "probability": labels.probs.astype("<f2"),
        "box": labels.box,
        "flip": labels.flip.astype("u1"),
    }


def _num_images(folder: Path) -> int:
    return int((folder.parent / COUNT).read_text())


def measure(
    layout: Layout,
    folder: Path,
    parts: Callable[[], Iterator[tuple[range, ModelLabels]]],
    *,
    num_images: int,
    num_crops: int,
    crops_per_image: int,
    samples: int,
    seed: int = 5,
) -> dict[str, Any]:
    """Bytes per crop, writing, one random image, and labels of one pass as a loader draws them.

    A pass reads images in random order and keeps m of each image's crops; `samples` images of it are timed
    after they were read once. Parquet, which would decode 1,024 images for each, may read a row group in order.
    What was written is read back and compared.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    (folder.parent / COUNT).write_text(str(num_images))
    seconds = 0.0
    if not folder.exists():
        begun = time.perf_counter()
        layout.write(folder, parts())
        seconds = time.perf_counter() - begun
    files = [path.stat() for path in folder.rglob("*") if path.is_file()]
    reader = layout.reader(folder)
    try:
        _check(reader, next(parts()))
        rows = random.Random(seed).sample(range(num_images), min(samples, num_images))
        draw = np.random.default_rng(seed)

        def one(row: int) -> None:
            chosen = draw.integers(num_crops, size=crops_per_image)
            for field in reader.image(row):
                field[chosen]

        for row in rows:
            one(row)
        spent = [_timed(one, row) for row in rows]
        in_pass = spent
        if isinstance(layout, Parquet):
            # from a group's first image, which pays for all of them, to its last
            group = range(min(PARQUET_ROW_GROUP, num_images))
            reader.image(num_images - 1)
            in_pass = [_timed(one, row) for row in group]
    finally:
        reader.close()
    crops = num_images * num_crops
    return {
        "layout": layout.name,
        "note": layout.note,
        "images": num_images,
        "bytes_per_crop": sum(file.st_size for file in files) / crops,
        "bytes_per_crop_in_blocks": sum(512 * file.st_blocks for file in files) / crops,
        "files": len(files),
        "write_crops_per_s": crops / seconds if seconds else None,
        "random_image_ms": 1e3 * float(np.median(spent)),
        "pass_crops_per_s": crops_per_image * len(in_pass) / sum(in_pass),
    }


def _timed(work: Callable[[int], None], row: int) -> float:
    begun = time.perf_counter()
    work(row)
    return time.perf_counter() - begun


def _check(reader: Reader, part: tuple[range, ModelLabels]) -> None:
    rows, labels = part
    ids, probs, _, flip = reader.image(rows.start)
    assert (ids == labels.class_ids[0]).all()
    assert np.abs(probs.astype(np.float32) - labels.probs[0]).max() < 1e-3
    assert (flip.astype(bool) == labels.flip[0]).all()
