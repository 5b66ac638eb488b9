"""Parquet: a row per crop, one file or a folder of them.

Columns: `key` (path relative to the image folder), `crop` (0 to M - 1; where it is missing, the order of the rows
counts),
`top`, `left`, `height`, `width` (pixels), `flip`, and `class_ids` with `probs` (lists of K) and `tail` (the mass of all
other classes; one minus the sum where it is missing), `probs` alone (lists of C), or `logits` (lists of C). Other
columns are left alone. Files are read row group by row group.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.errors import RejectedInput, StorageError
from labelstore.exchange.readers.npz import table_source
from labelstore.exchange.readers.scattered import Piece, Scattered
from labelstore.exchange.stated import Stated
from labelstore.images import ImageSource
from labelstore.untrusted.refusal import Refused, named, shown

BOX = ("top", "left", "height", "width")
LISTS = {"class_ids": "class_id", "probs": "prob", "logits": "logit"}
"""Column -> field of a table."""
MAX_GROUP_VALUES = 1 << 28
MAX_THRIFT = 64 << 20


def open_parquet(source: Path, images: ImageSource, stated: Stated) -> Scattered:
    """Labels of Parquet files."""
    files = sorted(source.glob("*.parquet")) if source.is_dir() else [source]
    if not files:
        raise RejectedInput(f"{source} holds no .parquet file")
    parts: list[tuple[Path, int]] = []
    rows = 0
    for path in files:
        with named(path):
            groups, count = _groups(path)
        parts += [(path, group) for group in range(groups)]
        rows += count
    if not parts:
        raise RejectedInput(f"{files[0]}: holds no rows")
    reader = _Reader(parts, images)
    with named(files[0]):
        first = {name: value[None] for name, value in reader(0).values.items()}
        most = stated.num_crops or _most(files, rows)
    return table_source(
        source, images, stated, "parquet", [p for p, _ in parts], reader, first, most
    )


@dataclass(frozen=True)
class _Reader:
    parts: list[tuple[Path, int]]
    images: ImageSource

    def __call__(self, number: int) -> Piece:
        path, group = self.parts[number]
        table = _read(path, group)
        rows = {key: row for row, key in enumerate(self.images.keys)}
        keys = table.pop("key")
        crops = table.pop("crop", None)
        found = np.array([rows.get(str(key), -1) for key in keys], np.int64)
        return Piece(images=found, values=table, crops=crops)


def _open(path: Path) -> Any:  # noqa: ANN401 - pyarrow ships no types
    import pyarrow.parquet as pq

    if not path.is_file():
        raise Refused("is missing")
    return pq.ParquetFile(
        path,
        memory_map=False,
        pre_buffer=False,
        thrift_string_size_limit=MAX_THRIFT,
        thrift_container_size_limit=1 << 20,
        page_checksum_verification=True,
    )


def _groups(path: Path) -> tuple[int, int]:
    """Row groups and rows of a file."""
    file = _opened(path)
    names = set(file.schema_arrow.names)
    missing = {"key"} - names
    if missing or not names & {"probs", "logits"}:
        raise Refused("has no column key, or neither probs nor logits")
    return file.num_row_groups, file.metadata.num_rows


def _opened(path: Path) -> Any:  # noqa: ANN401
    import pyarrow as pa

    try:
        return _open(path)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        _refuse_disk(path, error)
        raise Refused(f"is no Parquet file that can be read ({_line(error)})") from None


def _most(files: list[Path], rows: int) -> int:
    """Crops of the image that has most."""
    counts: dict[str, int] = {}
    for path in files:
        for group in range(_opened(path).num_row_groups):
            keys = _columns(path, group, ["key"])["key"]
            for key, count in zip(*np.unique(keys.astype(str), return_counts=True), strict=True):
                counts[str(key)] = counts.get(str(key), 0) + int(count)
    return max(counts.values(), default=1)


def _read(path: Path, group: int) -> dict[str, NDArray[Any]]:
    """One row group as fields (rows, ...)."""
    names = set(_opened(path).schema_arrow.names)
    wanted = [name for name in ("key", "crop", *BOX, "flip", *LISTS) if name in names]
    if "class_ids" in names and "tail" in names:
        wanted.append("tail")
    found = _columns(path, group, wanted)
    boxes = [name for name in BOX if name in found]
    if boxes and len(boxes) < len(BOX):
        raise Refused(f"has columns {', '.join(boxes)} of a box and not the others")
    table = {LISTS.get(name, name): values for name, values in found.items() if name not in BOX}
    if boxes:
        edges = [found[name] for name in BOX]
        if any(edge.dtype.kind not in "iu" for edge in edges):
            raise Refused("has boxes that are no whole pixels")
        table["box"] = np.stack([edge.astype(np.int64) for edge in edges], axis=-1)
    if "crop" in table:
        if table["crop"].dtype.kind not in "iu":
            raise Refused("has crop numbers that are no integers")
        table["crop"] = table["crop"].astype(np.int64)
    if "flip" in table:
        table["flip"] = (
            table["flip"].astype(np.uint8) if table["flip"].dtype.kind in "biu" else table["flip"]
        )
    return table


def _columns(path: Path, group: int, names: list[str]) -> dict[str, NDArray[Any]]:
    import pyarrow as pa

    try:
        file = _open(path)
        if file.metadata.row_group(group).num_rows > MAX_GROUP_VALUES:
            raise Refused("has a row group that is too large")
        batch = file.read_row_group(group, columns=names, use_threads=False)
        batch.validate(full=True)
        found = {name: _values(batch.column(name), name) for name in names}
    except (pa.ArrowException, OSError, ValueError, OverflowError, KeyError) as error:
        if isinstance(error, Refused):
            raise
        _refuse_disk(path, error)
        raise Refused(f"is a damaged Parquet file ({_line(error)})") from None
    rows = {len(values) for values in found.values()}
    if len(rows) != 1 or 0 in rows:
        raise Refused("has columns of different lengths")
    return found


def _values(column: Any, name: str) -> NDArray[Any]:  # noqa: ANN401
    import pyarrow as pa

    if column.null_count:
        raise Refused(f"has empty entries in column {name}")
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if name not in LISTS:
        if name == "key":
            if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
                raise Refused("has keys that are no texts")
            return np.array(array.to_pylist(), dtype=object)
        number = pa.types.is_floating if name == "tail" else pa.types.is_integer
        if not (number(array.type) or pa.types.is_boolean(array.type)):
            raise Refused(f"has a column {name} of {array.type}")
        return np.asarray(array.to_numpy(zero_copy_only=False))
    kind = array.type
    if not (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    ):
        raise Refused(f"has a column {name} of {kind}, not of lists")
    if not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise Refused(f"has a column {name} of {kind}")
    flat = array.flatten()
    if flat.null_count:
        raise Refused(f"has empty entries in column {name}")
    width = len(flat) // max(len(array), 1)
    lengths = set(np.unique(array.value_lengths().to_numpy(zero_copy_only=False)).tolist())
    if lengths != {width} or width < 1:
        raise Refused(f"has lists of different lengths in column {name}")
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(len(array), width)


def _refuse_disk(path: Path, error: Exception) -> None:
    """StorageError where the disk did not give the bytes: pyarrow has OSError, without a number, for bad ones too."""
    # a number that a wrong offset in the file gets: it is the file's fault
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL, errno.EOVERFLOW):
        reason = os.strerror(error.errno)
        raise StorageError(f"cannot read {path}: {reason}") from error


def _line(error: Exception) -> str:
    return shown(" ".join(str(error).split()), 200)
