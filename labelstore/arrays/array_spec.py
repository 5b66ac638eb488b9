"""One array as it lies on disk: its shape, shards, chunks and sentinel, and which values fit it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from labelstore.arrays.shard_files import ShardFile
from labelstore.errors import UsageError

MAX_CHUNK_BYTES = 1 << 29
"""Raw bytes of one chunk: a blosc frame holds 2 GiB, and this caps what a wicked store can ask for."""
MAX_SHARD_BYTES = 1 << 32
"""Raw bytes of one shard of one array."""


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """One array as it lies on disk: shapes in elements, axes (image, crop, ...) unless said otherwise."""

    path: str
    """Path inside the array folder, POSIX: "labels/resnet50/probability"."""
    dtype: str
    """Little-endian NumPy dtype string."""
    shape: tuple[int, ...]
    """Whole array. The first axis is the image row; the second the crop (or crop shards x row length)."""
    shard: tuple[int, ...]
    """Unit of commit: images_per_shard x crops_per_shard x row."""
    chunk: tuple[int, ...]
    """Unit of decoding inside a shard; its first axis equals the shard's."""
    dimensions: tuple[str, ...]
    """Axis names as xarray shows them."""
    fill: float | int
    """Sentinel for whatever is not stored."""
    shuffle: Literal["bitshuffle", "shuffle", "noshuffle"] = "bitshuffle"
    """Byte reordering inside blosc, before zstd."""
    row_axes_first: bool = False
    """Store axes 2.. before axes 0 and 1 inside each chunk (Zarr's transpose codec)."""
    may_be_empty: bool = False
    """True where a chunk of nothing but `fill` is a legal value and is left out of the shard."""
    level: int = 5
    """zstd level."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """JSON attributes for people and other tools."""
    group: str = field(init=False)
    """The path without its last part: "labels/resnet50"."""
    name: str = field(init=False)
    """Last part of the path: the field name."""
    grid: tuple[int, ...] = field(init=False)
    """Chunks of a shard along each axis; the second entry counts the chunk columns."""
    chunk_bytes: int = field(init=False)
    """Bytes of one decoded chunk."""

    def __post_init__(self) -> None:
        group, _, name = self.path.rpartition("/")
        object.__setattr__(self, "group", group)
        object.__setattr__(self, "name", name)
        parts = self.path.split("/")
        if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
            raise UsageError(f"array path {self.path!r}: give a relative POSIX path without '..'")
        axes = {len(self.shape), len(self.shard), len(self.chunk), len(self.dimensions)}
        if len(axes) != 1 or len(self.shape) < 2:
            raise UsageError(
                f"array {self.path}: shape {self.shape}, shard {self.shard}, chunk {self.chunk} and"
                f" dimensions {self.dimensions} must agree on two or more axes"
            )
        if min(self.shape + self.shard + self.chunk) < 1:
            raise UsageError(f"array {self.path}: every size must be at least 1, not {self.shape}")
        whole = all(a % b == 0 for a, b in zip(self.shard, self.chunk, strict=True))
        if not whole or self.chunk[0] != self.shard[0]:
            raise UsageError(
                f"array {self.path}: chunk {self.chunk} must divide shard {self.shard} and have all"
                " of its images"
            )
        grid = tuple(a // b for a, b in zip(self.shard, self.chunk, strict=True))
        object.__setattr__(self, "grid", grid)
        chunk_bytes = math.prod(self.chunk) * np.dtype(self.dtype).itemsize
        object.__setattr__(self, "chunk_bytes", chunk_bytes)
        shard_bytes = chunk_bytes * math.prod(grid)
        for what, size, limit in (
            ("chunk", chunk_bytes, MAX_CHUNK_BYTES),
            ("shard", shard_bytes, MAX_SHARD_BYTES),
        ):
            if size > limit:
                raise UsageError(
                    f"array {self.path}: a {what} of {size} bytes is over the limit of {limit}; "
                    "make images_per_shard or crops_per_shard smaller"
                )

    def checked_columns(self, columns: range | None) -> range:
        """The chunk columns asked for (None: all of them). UsageError beyond the shard's."""
        whole = range(self.grid[1])
        if columns is None:
            return whole
        if columns and (min(columns) < 0 or max(columns) >= len(whole)):
            raise UsageError(
                f"array {self.path}: chunk columns {columns} were asked for, a shard has {len(whole)}"
            )
        return columns

    def columns_shape(self, columns: range) -> tuple[int, ...]:
        """Shape of one shard's array with these chunk columns only."""
        return (self.shard[0], len(columns) * self.chunk[1], *self.shard[2:])

    def empty_columns(self, columns: range, *, stored_order: bool) -> NDArray[Any]:
        """An array to read these chunk columns into, in C order or with axes in memory as they are on disk."""
        shape = self.columns_shape(columns)
        if not (stored_order and self.row_axes_first):
            return np.empty(shape, self.dtype)
        return np.moveaxis(np.empty((*shape[2:], *shape[:2]), self.dtype), (-2, -1), (0, 1))


@dataclass(frozen=True, kw_only=True)
class EncodedFile:
    """A `ShardFile` together with its bytes, ready for the durable writer."""

    record: ShardFile
    data: bytes


def check_arrays(specs: Sequence[ArraySpec], arrays: Mapping[str, NDArray[Any]]) -> None:
    """UsageError unless there is one array per spec, of its dtype and at most its shard's shape."""
    names = sorted(spec.name for spec in specs)
    if names != sorted(arrays):
        raise UsageError(f"arrays {sorted(arrays)} were given where {names} are due")
    for spec in specs:
        array = arrays[spec.name]
        if array.dtype != np.dtype(spec.dtype):
            raise UsageError(f"array {spec.path}: {array.dtype} was given, {spec.dtype} is due")
        fits = all(a <= b for a, b in zip(array.shape, spec.shard, strict=False))
        if array.ndim != len(spec.shard) or not fits:
            raise UsageError(
                f"array {spec.path}: shape {array.shape} does not fit its shard {spec.shard}"
            )
