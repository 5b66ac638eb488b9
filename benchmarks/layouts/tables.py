"""A row per crop in the engines of tables: Parquet, Vortex, Lance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.label_model import ModelLabels
from benchmarks.layouts.base import FIELDS, WIDTHS, Crops, Layout, Parts, Reader, plain

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET_ROW_GROUP = 1 << 17
"""Rows, or a little less so that groups hold whole images. pyarrow advises 64 Ki to 1 Mi; a random crop costs a page of each column of a group."""


def table_of(labels: ModelLabels) -> pa.Table:
    """A row per crop: fixed-size lists of ids, probabilities and box, and the flip."""
    import pyarrow as pa

    columns = {}
    for name, array in plain(labels).items():
        flat = pa.array(np.ascontiguousarray(array).reshape(-1))
        width = WIDTHS[name]
        columns[name] = flat if width == 1 else pa.FixedSizeListArray.from_arrays(flat, width)
    return pa.table(columns)


def crops_of(table: pa.Table | pa.StructArray, shape: tuple[int, ...]) -> Crops:
    """Rows -> fields of `shape` (..., width)."""
    import pyarrow as pa

    found = []
    for name in FIELDS:
        column = table.column(name) if isinstance(table, pa.Table) else table.field(name)
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
        width = WIDTHS[name]
        values = column if width == 1 else column.flatten()
        array = values.to_numpy(zero_copy_only=False)
        found.append(array.reshape(shape if width == 1 else (*shape, width)))
    ids, probs, box, flip = found
    return ids, probs, box, flip


class _TableReader(Reader):
    """Rows of a table by number; what differs is how an engine takes them."""

    def __init__(self, num_crops: int) -> None:
        self._num_crops = num_crops

    def rows(self, numbers: NDArray[np.int64]) -> pa.Table | pa.StructArray:
        """Rows by ascending distinct numbers."""
        raise NotImplementedError

    def image(self, row: int) -> Crops:
        first = row * self._num_crops
        numbers = np.arange(first, first + self._num_crops)
        return crops_of(self.rows(numbers), (self._num_crops,))

    def batch(self, rows: NDArray[np.int64], crops: NDArray[np.int64]) -> Crops:
        numbers, where = np.unique(rows[:, None] * self._num_crops + crops, return_inverse=True)
        fields = crops_of(self.rows(numbers), numbers.shape)
        ids, probs, box, flip = (field[where.reshape(crops.shape)] for field in fields)
        return ids, probs, box, flip


@dataclass(frozen=True)
class Parquet(Layout):
    """One file, zstd 3, fixed-size lists; a random crop costs its row group."""

    name: str = "Parquet, zstd"
    note: str = "row groups of 131,072 crops; a crop costs its row group"
    packages: tuple[str, ...] = ("pyarrow",)

    def write(self, folder: Path, parts: Parts, num_images: int) -> None:
        import pyarrow.parquet as pq

        folder.mkdir(parents=True)
        writer = None
        for _, labels in parts:
            table = table_of(labels)
            if writer is None:
                writer = pq.ParquetWriter(
                    folder / "labels.parquet",
                    table.schema,
                    compression="zstd",
                    use_dictionary=False,
                    write_page_checksum=True,
                )
                (folder / "crops").write_text(str(labels.flip.shape[1]))
            crops = labels.flip.shape[1]
            writer.write_table(table, row_group_size=max(1, PARQUET_ROW_GROUP // crops) * crops)
        assert writer is not None
        writer.close()

    def reader(self, folder: Path) -> Reader:
        return _ParquetReader(folder / "labels.parquet", int((folder / "crops").read_text()))

    def remote_reader(self, url: str, folder: Path, num_images: int) -> Reader:
        from benchmarks.layouts.served import RangeFile

        crops = int(RangeFile(f"{url}/crops").read(-1))
        return _ParquetReader(RangeFile(f"{url}/labels.parquet"), crops)


class _ParquetReader(_TableReader):
    def __init__(self, file: Any, num_crops: int) -> None:
        import pyarrow.parquet as pq

        super().__init__(num_crops)
        self._file = pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=True)
        counts = [
            self._file.metadata.row_group(group).num_rows
            for group in range(self._file.num_row_groups)
        ]
        self._starts = np.concatenate([[0], np.cumsum(counts)])

    def rows(self, numbers: NDArray[np.int64]) -> pa.Table:
        import pyarrow as pa

        group_of = np.searchsorted(self._starts, numbers, "right") - 1
        taken = []
        for group in np.unique(group_of).tolist():
            table = self._file.read_row_group(group)
            taken.append(table.take(pa.array(numbers[group_of == group] - self._starts[group])))
        return pa.concat_tables(taken)

    def everything(self, num_images: int) -> Iterator[Crops]:
        for group in range(self._file.num_row_groups):
            table = self._file.read_row_group(group)
            yield crops_of(table, (table.num_rows // self._num_crops, self._num_crops))

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class Vortex(Layout):
    """One file by Vortex's own writer, which chooses the encodings; a local file is mapped, as its documentation advises."""

    name: str = "Vortex"
    note: str = "its own choice of encodings; rows taken by number"
    packages: tuple[str, ...] = ("vortex-data",)

    def write(self, folder: Path, parts: Parts, num_images: int) -> None:
        import pyarrow as pa
        import vortex

        folder.mkdir(parents=True)
        parts = iter(parts)
        first = next(parts)[1]
        (folder / "crops").write_text(str(first.flip.shape[1]))
        schema = table_of(first).schema

        def batches() -> Iterator[pa.RecordBatch]:
            yield from table_of(first).to_batches()
            for _, labels in parts:
                yield from table_of(labels).to_batches()

        reader = pa.RecordBatchReader.from_batches(schema, batches())
        vortex.io.write(reader, str(folder / "labels.vortex"))

    def reader(self, folder: Path) -> Reader:
        import vortex

        crops = int((folder / "crops").read_text())
        return _VortexReader(vortex.open(str(folder / "labels.vortex"), memory_map=True), crops)

    def remote_reader(self, url: str, folder: Path, num_images: int) -> Reader:
        import vortex

        from benchmarks.layouts.served import RangeFile

        crops = int(RangeFile(f"{url}/crops").read(-1))
        return _VortexReader(vortex.open_readable(RangeFile(f"{url}/labels.vortex")), crops)


class _VortexReader(_TableReader):
    def __init__(self, file: Any, num_crops: int) -> None:
        super().__init__(num_crops)
        self._file = file

    def rows(self, numbers: NDArray[np.int64]) -> pa.StructArray:
        import pyarrow as pa
        import vortex

        indices = vortex.array(pa.array(numbers.astype(np.uint64)))
        return _struct(self._file.scan(indices=indices).read_all())

    def everything(self, num_images: int) -> Iterator[Crops]:
        for array in self._file.scan(batch_size=256 * self._num_crops):
            found = _struct(array)
            yield crops_of(found, (len(found) // self._num_crops, self._num_crops))

    def close(self) -> None:
        del self._file


def _struct(array: Any) -> pa.StructArray:
    import pyarrow as pa

    found = array.to_arrow_array()
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


@dataclass(frozen=True)
class Lance(Layout):
    """A Lance dataset of data storage version 2.1; rows taken by number."""

    name: str = "Lance"
    note: str = "data storage version 2.1; rows taken by number"
    packages: tuple[str, ...] = ("pylance",)

    def write(self, folder: Path, parts: Parts, num_images: int) -> None:
        import lance
        import pyarrow as pa

        parts = iter(parts)
        first = next(parts)[1]

        def batches() -> Iterator[pa.RecordBatch]:
            yield from table_of(first).to_batches()
            for _, labels in parts:
                yield from table_of(labels).to_batches()

        reader = pa.RecordBatchReader.from_batches(table_of(first).schema, batches())
        lance.write_dataset(reader, str(folder), data_storage_version="2.1")
        (folder / "crops").write_text(str(first.flip.shape[1]))

    def reader(self, folder: Path) -> Reader:
        return _LanceReader(folder)


class _LanceReader(_TableReader):
    def __init__(self, folder: Path) -> None:
        import lance

        super().__init__(int((folder / "crops").read_text()))
        self._dataset = lance.dataset(str(folder))

    def rows(self, numbers: NDArray[np.int64]) -> pa.Table:
        return self._dataset.take(numbers.tolist())

    def everything(self, num_images: int) -> Iterator[Crops]:
        import pyarrow as pa

        for batch in self._dataset.to_batches(batch_size=256 * self._num_crops):
            table = pa.Table.from_batches([batch])
            yield crops_of(table, (table.num_rows // self._num_crops, self._num_crops))
