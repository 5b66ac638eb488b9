"""Plain tables: NumPy archives, and Parquet with a row per crop; one file or a folder of them.

    key      (n,) texts               paths relative to the image folder
    box      (n, M, 4)                top, left, height, width: integers in pixels, or floats as shares of the sides
    flip     (n, M)                   0 or 1; none where it is missing
    class_id (n, M, K), prob (n, M, K)      the K largest probabilities, with
    tail     (n, M)                   the mass of all other classes; one minus the sum where it is missing; or
    prob     (n, M, C)                      all of them, or
    logit    (n, M, C)                      outputs before softmax

are the arrays of an `.npz` file. Without `box`, crops are whole images where that is said. Arrays are read by hand: no
pickles, declared sizes checked. Columns of Parquet are `key`, `crop` (0 to M - 1; where it is missing, the order of the
rows counts), `top`, `left`, `height`, `width` (pixels), `flip`, and `class_ids` with `probs` (lists of K) and `tail`,
`probs` alone (lists of C), or `logits` (lists of C); others are left alone. Files are read row group by row group.
"""

from __future__ import annotations

import ast
import errno
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.errors import RejectedInput, StorageError
from labelstore.exchange.labels import Contents, ImageLabels, Kind
from labelstore.exchange.readers.boxes import BoxShares, box_shares, pixel_boxes, whole_image
from labelstore.exchange.readers.label_values import (
    class_ids,
    finite,
    kept_probabilities,
    tail_mass,
    truths,
    whole_probabilities,
)
from labelstore.exchange.readers.sources import ImageRows, Piece, Scattered
from labelstore.exchange.stated import Stated
from labelstore.images import ImageSource
from labelstore.untrusted.refusal import Refused, named, read_bytes, shown
from labelstore.untrusted.stored_zip import ZIP_MAGIC, ZipEntries

MAX_NPZ_BYTES = 4 << 30
MAX_INFLATED = 16
"""Inflated bytes per byte of the file."""
MAX_HEADER = 4096
_KINDS = "iufbU"


def open_npz(source: Path, images: ImageSource, stated: Stated) -> Scattered:
    """Labels of NumPy archives."""
    paths = sorted(source.glob("*.npz")) if source.is_dir() else [source]
    if not paths:
        raise RejectedInput(f"{source} holds no .npz file")
    with named(paths[0]):
        table = read_npz(paths[0])
    return table_source(source, images, stated, "npz", paths, _Reader(paths, images), table)


@dataclass(frozen=True)
class _Reader:
    paths: list[Path]
    images: ImageSource

    def __call__(self, number: int) -> Piece:
        table = dict(read_npz(self.paths[number]))
        keys = table.pop("key")
        rows = {key: row for row, key in enumerate(self.images.keys)}
        m = next(iter(table.values())).shape[1]
        found = np.array([rows.get(str(key), -1) for key in keys], np.int64)
        return Piece(
            images=np.repeat(found, m),
            values={name: value.reshape(-1, *value.shape[2:]) for name, value in table.items()},
        )


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Arrays of a file by name, `key` among them; Refused for anything but labels."""
    data = read_bytes(path, MAX_NPZ_BYTES)
    if not data.startswith(ZIP_MAGIC):
        raise Refused("is no .npz file")
    entries = ZipEntries(data, inflate=MAX_INFLATED * len(data))
    known = ("key", "box", "flip", "class_id", "prob", "tail", "logit")
    table = {}
    for name in entries:
        field = name.removesuffix(".npy")
        if field not in known:
            raise Refused(f"has an array {shown(name)}; known are {', '.join(known)}")
        table[field] = read_npy(entries.read(name), field)
    if "key" not in table or table["key"].ndim != 1 or table["key"].dtype.kind != "U":
        raise Refused("has no array key of texts")
    counts = {name: value.shape[: 1 if name == "key" else 2] for name, value in table.items()}
    first = next((shape for name, shape in counts.items() if name != "key"), (0,))
    if len(first) != 2 or not first[0] or not first[1]:
        raise Refused("has no labels")
    if any(shape != first[: len(shape)] for shape in counts.values()):
        raise Refused(
            f"has arrays of different lengths: {', '.join(f'{n} {s}' for n, s in counts.items())}"
        )
    return table


def read_npy(data: memoryview, name: str) -> NDArray[Any]:
    """One array of an archive; Refused for objects, odd dtypes and other sizes than declared."""
    raw = bytes(data[:12])
    if raw[:6] != b"\x93NUMPY" or len(raw) < 12 or raw[6] not in (1, 2):
        raise Refused(f"has an array {name} that NumPy did not write")
    start, length = (
        (10, int.from_bytes(raw[8:10], "little"))
        if raw[6] == 1
        else (12, int.from_bytes(raw[8:12], "little"))
    )
    if length > MAX_HEADER or start + length > len(data):
        raise Refused(f"has an array {name} with a damaged header")
    try:
        header = ast.literal_eval(bytes(data[start : start + length]).decode("latin-1"))
        dtype = np.dtype(str(header["descr"]))
        shape, fortran = header["shape"], header["fortran_order"]
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        raise Refused(f"has an array {name} with a damaged header") from None
    is_long = dtype.kind == "f" and dtype.itemsize > 8  # a float of its machine's own kind
    if dtype.kind not in _KINDS or dtype.byteorder == ">" or dtype.names is not None or is_long:
        raise Refused(f"has an array {name} of dtype {shown(dtype, 20)}")
    if not (
        isinstance(shape, tuple)
        and len(shape) <= 4
        and all(type(n) is int and 0 <= n < 1 << 40 for n in shape)
    ):
        raise Refused(f"has an array {name} of impossible shape")
    body = data[start + length :]
    if dtype.itemsize == 0 or math.prod(shape) * dtype.itemsize != len(body):
        raise Refused(
            f"declares {math.prod(shape) * dtype.itemsize} bytes of {name} and gives {len(body)}"
        )
    array = np.frombuffer(body, dtype).reshape(shape, order="F" if fortran is True else "C")
    if dtype.kind == "U":
        try:
            array.tolist()
        except ValueError:
            raise Refused(f"has texts in {name} that are none") from None
    return array


def table_source(
    source: Path,
    images: ImageSource,
    stated: Stated,
    format_name: str,
    paths: list[Path],
    reader: Any,  # noqa: ANN401 - a function of the piece's number
    first: Mapping[str, NDArray[Any]],
    most: int | None = None,
) -> Scattered:
    """A source of tables with the fields above; `first` is one of them, arrays (n, M, ...)."""
    with named(paths[0]):
        kind, k, num_classes = _kind(first)
    num_classes = num_classes or stated.classes(format_name)
    if "box" not in first:
        stated.need("whole_images", "there is no box; without boxes crops can only be whole images")
    most = most or next(value for name, value in first.items() if name != "key").shape[1]
    num_crops = stated.crops(most)
    values = first["logit"] if kind == "outputs" else first["prob"]
    return Scattered(
        source=source,
        images=images,
        pieces=paths,
        read_piece=reader,
        most=most,
        finish=_Finish(
            kind=kind,
            num_classes=num_classes,
            boxes=box_shares(stated.axis_order, round_boxes=stated.round_boxes),
        ),
        contents=Contents(
            kind=kind,
            num_crops=num_crops,
            k=k,
            num_classes=None if kind == "kept" else num_classes,
            dtype=str(values.dtype),
        ),
        num_crops=stated.num_crops,
        facts={"fields": sorted(first)},
    )


def _kind(table: Mapping[str, NDArray[Any]]) -> tuple[Kind, int | None, int | None]:
    values = table.get("logit", table.get("prob"))
    if values is None or ("logit" in table and ("prob" in table or "class_id" in table)):
        raise Refused("has no labels: one of prob, class_id with prob, or logit is needed")
    if values.ndim != 3 or not values.shape[2]:
        raise Refused(f"has labels of shape {values.shape}, not (images, crops, classes)")
    if "logit" in table:
        return "outputs", None, values.shape[2]
    if "tail" in table and "class_id" not in table:
        raise Refused("has a tail, which only labels with class_id have")
    if "class_id" not in table:
        return "probabilities", None, values.shape[2]
    if table["class_id"].shape != values.shape:
        raise Refused(f"has class_id {table['class_id'].shape} and prob {values.shape}")
    return "kept", values.shape[2], None


@dataclass(frozen=True, kw_only=True)
class _Finish:
    kind: Kind
    num_classes: int
    boxes: BoxShares

    def __call__(self, rows: ImageRows) -> ImageLabels:
        values, height, width = rows.values, rows.height, rows.width
        m = len(next(iter(values.values())))
        flips = truths(values["flip"], "flips") if "flip" in values else np.zeros(m, bool)
        if "box" not in values:
            boxes = whole_image(m, height, width)
        elif values["box"].dtype.kind == "f":
            boxes = self.boxes.pixels(values["box"], height, width)
        else:
            boxes = pixel_boxes(values["box"], height, width)
        if self.kind == "outputs":
            return ImageLabels(labels=finite(values["logit"], "outputs"), boxes=boxes, flips=flips)
        if self.kind == "probabilities":
            return ImageLabels(labels=whole_probabilities(values["prob"]), boxes=boxes, flips=flips)
        if values["prob"].dtype.kind != "f":
            raise Refused(f"has probabilities of dtype {values['prob'].dtype}")
        labels = kept_probabilities(class_ids(values["class_id"], self.num_classes), values["prob"])
        if "tail" in values:
            labels = replace(labels, tail=tail_mass(values["tail"], labels.probs))
        return ImageLabels(labels=labels, boxes=boxes, flips=flips)


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
    reader = _ParquetReader(parts, images)
    with named(files[0]):
        first = {name: value[None] for name, value in reader(0).values.items()}
        most = stated.num_crops or _most(files, rows)
    return table_source(
        source, images, stated, "parquet", [p for p, _ in parts], reader, first, most
    )


@dataclass(frozen=True)
class _ParquetReader:
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
    columns = _columns(path, group, wanted)
    boxes = [name for name in BOX if name in columns]
    if boxes and len(boxes) < len(BOX):
        raise Refused(f"has columns {', '.join(boxes)} of a box and not the others")
    table = {LISTS.get(name, name): values for name, values in columns.items() if name not in BOX}
    if boxes:
        edges = [columns[name] for name in BOX]
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
        columns = {name: _values(batch.column(name), name) for name in names}
    except (pa.ArrowException, OSError, ValueError, OverflowError, KeyError) as error:
        if isinstance(error, Refused):
            raise
        _refuse_disk(path, error)
        raise Refused(f"is a damaged Parquet file ({_line(error)})") from None
    rows = {len(values) for values in columns.values()}
    if len(rows) != 1 or 0 in rows:
        raise Refused("has columns of different lengths")
    return columns


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
