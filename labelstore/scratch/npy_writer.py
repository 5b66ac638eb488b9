"""A .npy file being written by row ranges, in any order and from any thread."""

from __future__ import annotations

import os
import secrets
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from labelstore.scratch.folders import storage_errors


class NpyWriter:
    """The file gets its name on leaving the `with` block without an error: a file that exists is whole.

    StorageError where the disk is full or refuses.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.path, self.shape, self.dtype = path, shape, dtype
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        self._handle = -1
        self._offset = 0

    def __enter__(self) -> Self:
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": self.shape,
        }
        with storage_errors(self.path):
            with self._temporary.open("wb") as file:
                np.lib.format.write_array_header_2_0(file, header)
                self._offset = file.tell()
                file.truncate(self._offset + prod(self.shape) * self.dtype.itemsize)
            self._handle = os.open(self._temporary, os.O_WRONLY | os.O_CLOEXEC)
        return self

    def write(self, first_row: int, rows: NDArray[Any]) -> None:
        """Rows (n, ...) from `first_row` on."""
        with storage_errors(self.path):
            write_at(self._handle, self._offset + first_row * self._row_bytes, rows)

    @property
    def _row_bytes(self) -> int:
        return prod(self.shape[1:]) * self.dtype.itemsize

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._handle)
        if kind is not None:
            self._temporary.unlink(missing_ok=True)
            return
        with storage_errors(self.path):
            self._temporary.rename(self.path)


def write_at(handle: int, offset: int, values: NDArray[Any]) -> None:
    """The bytes of an array at an offset of a file. OSError where the disk refuses."""
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    done = 0
    while done < data.size:
        done += os.pwrite(handle, data[done:].data, offset + done)
