"""One HDF5 file of growing size, written row by row, that any HDF5 program reads: for labels that go out.

libhdf5 does not survive a disk that refuses: it crashes when the process ends (4 of 4 on a full disk). So it never
hears of it. It writes through `_Sink`, which keeps what the disk refused in memory, says so at the next call from
here, and lets libhdf5 close a file that is then thrown away. Filters are built-in ones: shuffle, gzip, fletcher32.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from labelstore.arrays.durable import fsync_file

T = TypeVar("T")

CHUNK_BYTES = 1 << 20
"""Raw bytes of a chunk, about."""
LEVEL = 4
_CACHED_CHUNKS = 4


@dataclass(frozen=True, kw_only=True)
class TableColumn:
    """One dataset: as many rows as the table has, each of one shape."""

    dtype: str
    """NumPy dtype string; "S40" is UTF-8 text of at most 40 bytes."""
    shape: tuple[int, ...] = ()
    """Shape of one row."""
    about: str = ""
    """What it is, for people: the attribute `about`."""


class Hdf5Table:
    """A new file with datasets of `num_rows` rows, filled from the first row on. OSError where the disk refuses."""

    def __init__(
        self,
        path: Path,
        *,
        num_rows: int,
        columns: Mapping[str, TableColumn],
        whole: Mapping[str, tuple[NDArray[Any], str]],
        attributes: Mapping[str, str | int | float],
    ) -> None:
        import h5py  # type: ignore[import-untyped]

        self._sink = _Sink(path)
        self._row = 0
        self._num_rows = num_rows
        self._file: Any = None
        try:
            self._file = h5py.File(self._sink, "w", libver="earliest")
            for name, value in attributes.items():
                self._file.attrs[name] = value
            for name, (values, about) in whole.items():
                self._file.create_dataset(name, data=_texts(values)).attrs["about"] = about
            for name, column in columns.items():
                self._add(name, column)
            self._sink.check()
        except BaseException:
            self.abandon()
            raise

    def append(self, values: Mapping[str, NDArray[Any]]) -> None:
        """The next rows of every column."""
        count = len(next(iter(values.values())))
        rows = slice(self._row, self._row + count)
        assert rows.stop <= self._num_rows
        for name, array in values.items():
            self._file[name][rows] = _texts(array)
            self._sink.check()
        self._row += count

    def finish(self) -> None:
        """Close the file, whole."""
        assert self._row == self._num_rows
        self._file.flush()
        self._sink.check()
        self._file.close()
        self._sink.check()
        self._sink.sync()

    def abandon(self) -> None:
        """Let go of the file, whatever became of it."""
        if self._file is not None:
            self._file.close()
        self._sink.close()

    def _add(self, name: str, column: TableColumn) -> None:
        import h5py

        dtype: Any = np.dtype(column.dtype)
        per_row = max(dtype.itemsize * int(np.prod(column.shape)), 1)
        height = int(np.clip(CHUNK_BYTES // per_row, 1, max(self._num_rows, 1)))
        chunk = height * per_row
        if dtype.kind == "S":
            dtype = h5py.string_dtype("utf-8", dtype.itemsize)
        dataset = self._file.create_dataset(
            name,
            shape=(self._num_rows, *column.shape),
            dtype=dtype,
            chunks=(height, *column.shape),
            shuffle=True,
            compression="gzip",
            compression_opts=LEVEL,
            fletcher32=True,
            rdcc_nbytes=_CACHED_CHUNKS * chunk,
        )
        dataset.attrs["about"] = column.about


def _texts(values: NDArray[Any]) -> NDArray[Any]:
    """Texts as UTF-8 bytes, everything else as it is."""
    if values.dtype.kind not in "OU":
        return values
    import h5py

    encoded = np.array([str(text).encode() for text in values.ravel().tolist()])
    kind = h5py.string_dtype("utf-8", max(encoded.dtype.itemsize, 1))
    return encoded.astype(kind).reshape(values.shape)


class _Sink(io.RawIOBase):
    """The file as libhdf5 sees it: a disk that never refuses. `check` tells whether the real one did."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(path, flags, 0o666)
        self._at = 0
        self._size = 0
        self._problem: OSError | None = None
        self._kept: list[tuple[int, bytes]] = []

    def check(self) -> None:
        """Raise what the disk said first."""
        if self._problem is not None:
            raise self._problem

    def sync(self) -> None:
        """Make what was written durable."""
        fsync_file(self._descriptor)

    def readable(self) -> bool:
        """It is."""
        return True

    def writable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Where the next call reads or writes."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        """Where that is."""
        return self._at

    def truncate(self, size: int | None = None) -> int:
        """The file's length from now on."""
        self._size = self._at if size is None else size
        self._attempt(lambda: os.ftruncate(self._descriptor, self._size))
        return self._size

    def flush(self) -> None:
        """Nothing is held back."""

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - any writable buffer
        """Bytes from here on, with what the disk did not take laid over them."""
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._size - self._at))
        found = bytearray(count)
        data = self._attempt(lambda: os.pread(self._descriptor, count, self._at)) or b""
        found[: len(data)] = data
        for offset, kept in self._kept:
            first, last = max(offset, self._at), min(offset + len(kept), self._at + count)
            if first < last:
                found[first - self._at : last - self._at] = kept[first - offset : last - offset]
        view[:count] = found
        self._at += count
        return count

    def write(self, data: Any) -> int:  # noqa: ANN401 - any buffer
        """All of it, to the disk or, once that has refused, to memory."""
        view = memoryview(data).cast("B")
        at, length = self._at, len(view)
        self._at += length
        self._size = max(self._size, self._at)
        if self._problem is None:
            self._attempt(lambda: self._write_all(view, at))
        if self._problem is not None:
            # what a half-written chunk reads back as is of no interest to anyone, metadata is to libhdf5
            self._kept.append((at, bytes(view)))
        return length

    def close(self) -> None:
        """Close the real file."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)
        super().close()

    def _write_all(self, view: memoryview, at: int) -> None:
        while len(view):
            written = os.pwrite(self._descriptor, view, at)
            view, at = view[written:], at + written

    def _attempt(self, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except OSError as error:
            self._problem = self._problem or error
            return None
