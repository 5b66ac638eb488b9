"""A data set that Hugging Face's `datasets` saved on disk: encoded images in Arrow files, mapped and never decoded
here.

The image column is the first of type Image, or one called `image` of bytes or paths; the class is `label`, or the
first column of type ClassLabel. A row's key is the path beside its bytes where every row has one of its own, and the
row's number otherwise. Images may also lie beside the Arrow files, at relative paths.
"""

from __future__ import annotations

import json
import stat
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.errors import RejectedInput, UsageError
from labelstore.images.class_names import MAX_CLASSES, number_classes
from labelstore.images.image_source import EncodedImage, ImageFile, ImageSource, check_key

STATE_FILE = "state.json"
SPLITS_FILE = "dataset_dict.json"
IMAGE_COLUMNS = ("image", "img")
CLASS_COLUMNS = ("label", "class")


@dataclass(frozen=True)
class ArrowColumn:
    """One column of a saved data set; goes to another process as the place where it is."""

    root: Path
    name: str

    @cached_property
    def parts(self) -> tuple[list[tuple[Any, Any]], list[int]]:
        """(bytes or None, paths or None) of each chunk as Arrow arrays, and the row at which each ends."""
        found, ends, end = [], [], 0
        for chunk in _load(self.root).data.column(self.name).chunks:
            end += len(chunk)
            ends.append(end)
            found.append(_bytes_and_paths(chunk))
        return found, ends

    def value(self, row: int) -> tuple[Any, str | None]:
        """The encoded image of a row as an Arrow buffer or None, and its path or None."""
        chunks, ends = self.parts
        at = bisect_right(ends, row)
        data, paths = chunks[at]
        inside = row - (ends[at - 1] if at else 0)
        buffer = None if data is None else data[inside].as_buffer()
        return buffer, None if paths is None else paths[inside].as_py()

    def __reduce__(self) -> tuple[type[ArrowColumn], tuple[Path, str]]:
        return ArrowColumn, (self.root, self.name)


@dataclass(frozen=True, slots=True)
class ArrowImage(EncodedImage):
    """The bytes of one row."""

    column: ArrowColumn
    row: int

    def read_bytes(self) -> bytes:
        """Out of the mapped file."""
        data: bytes = self._buffer().to_pybytes()
        return data

    def read_head(self, num_bytes: int) -> bytes:
        """The first bytes; no other page is touched."""
        data: bytes = self._buffer()[:num_bytes].to_pybytes()
        return data

    def _buffer(self) -> Any:  # noqa: ANN401 - an Arrow buffer
        buffer, _ = self.column.value(self.row)
        if buffer is None:
            raise RejectedInput(
                f"{self} has no bytes: save the data set again with its images embedded"
            )
        return buffer

    def __str__(self) -> str:
        return f"{self.column.root}, row {self.row}"


@dataclass(frozen=True, kw_only=True)
class SavedDataset(ImageSource):
    """The images of one split, in the order of its rows."""

    kind = "datasets"

    column: ArrowColumn
    _rows: dict[str, int] = field(repr=False)
    _files: frozenset[int] = field(repr=False)
    """Rows whose image is a file beside the Arrow files."""

    def file(self, key: str) -> ImageFile:
        """Where the image of that key is; FileNotFoundError for a key that no row has."""
        row = self._rows.get(key)
        if row is None:
            raise FileNotFoundError(2, f"no image {key}", str(self.root))
        if row in self._files:
            return self.root / str(self.column.value(row)[1])
        return ArrowImage(self.column, row)


def is_saved(path: Path) -> bool:
    """Whether a folder is one data set that `datasets` saved."""
    return (path / STATE_FILE).is_file() and (path / "dataset_info.json").is_file()


def splits(path: Path) -> list[str]:
    """Names of the splits of a folder with several."""
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and is_saved(entry))


def read_saved(root: Path) -> SavedDataset:
    """The images of a saved data set.

    UsageError where `datasets` is not installed; RejectedInput for files that it does not read, no image column, no
    class, and a row without image, without class, or whose file is not at a relative path inside the folder.
    """
    dataset = _load(root)
    image = _image_column(root, dataset)
    column = ArrowColumn(root, image)
    if not len(dataset):
        raise RejectedInput(f"{root} has no rows: give another data set")
    sizes = np.full(len(dataset), -1, np.int64)
    paths: list[str | None] = []
    files: set[int] = set()
    for data, names in column.parts[0]:
        start = len(paths)
        count = len(data if data is not None else names)
        paths += [None] * count if names is None else names.to_pylist()
        lengths = np.full(count, -1) if data is None else _lengths(data)
        sizes[start : start + count] = lengths
        files.update((start + np.flatnonzero(lengths < 0)).tolist())
    mtimes = np.full(len(dataset), (root / STATE_FILE).stat().st_mtime_ns, np.int64)
    for row in sorted(files):
        sizes[row], mtimes[row] = _size_and_time(root, paths[row], row)
    classes, class_ids = _classes(root, dataset)
    keys = _keys(paths)
    return SavedDataset(
        root=root,
        classes=classes,
        keys=keys,
        class_ids=class_ids,
        sizes=sizes,
        mtimes_ns=mtimes,
        column=column,
        _rows={key: row for row, key in enumerate(keys)},
        _files=frozenset(files),
    )


def _load(root: Path) -> Any:  # noqa: ANN401 - a datasets.Dataset
    try:
        from datasets import load_from_disk
    except ImportError:
        raise UsageError(
            f"{root} is a data set of Hugging Face: pip install 'labelstore[datasets]'"
        ) from None
    place = str(root.absolute())
    if "::" in place:
        # it would be split there, and the data set of the shorter path be read
        raise RejectedInput(
            f"{root}: `datasets` reads '::' in a path as a chain of URLs: rename the folder, or give a link to it"
        )
    try:
        state = json.loads((root / STATE_FILE).read_text(encoding="utf-8"))
        if state.get("_indices_data_files"):
            raise RejectedInput(
                f"{root} was saved with a selection of rows beside it: save it again with a current `datasets`"
            )
        return load_from_disk(place, keep_in_memory=False)
    except RejectedInput:
        raise
    except Exception as error:  # noqa: BLE001
        # it raises what it stumbles over: JSON and Arrow errors, KeyError, TypeError, ...
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise RejectedInput(
            f"{root} cannot be read by `datasets` ({reason}): save it again"
        ) from None


def _image_column(root: Path, dataset: Any) -> str:  # noqa: ANN401
    import pyarrow as pa
    from datasets import Image

    typed = [name for name, feature in dataset.features.items() if isinstance(feature, Image)]
    for name in (*typed, *(name for name in IMAGE_COLUMNS if name in dataset.features)):
        kind = dataset.data.schema.field(name).type
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        if pa.types.is_struct(plain):
            if {"bytes", "path"} <= {plain.field(i).name for i in range(plain.num_fields)}:
                return str(name)
        elif _is_bytes(plain) or _is_text(plain):
            return str(name)
    raise RejectedInput(
        f"{root} has columns {', '.join(map(str, dataset.features))[:200]} and none of images: cast one to "
        "datasets.Image() and save it again"
    )


def _bytes_and_paths(chunk: Any) -> tuple[Any, Any]:  # noqa: ANN401 - Arrow arrays
    import pyarrow as pa

    if pa.types.is_dictionary(chunk.type):
        chunk = chunk.dictionary_decode()
    if pa.types.is_struct(chunk.type):
        # unlike field(), this knows of rows that are missing as a whole
        parts = dict(zip((f.name for f in chunk.type), chunk.flatten(), strict=True))
        data, paths = parts["bytes"], parts["path"]
        return (data if _is_bytes(data.type) else None), (paths if _is_text(paths.type) else None)
    return (chunk, None) if _is_bytes(chunk.type) else (None, chunk)


def _is_bytes(kind: Any) -> bool:  # noqa: ANN401 - an Arrow type
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: Any) -> bool:  # noqa: ANN401 - an Arrow type
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _lengths(data: Any) -> NDArray[np.int64]:  # noqa: ANN401 - an Arrow array
    import pyarrow.compute as pc

    lengths = pc.fill_null(pc.binary_length(data), -1)
    return np.asarray(lengths.to_numpy(zero_copy_only=False), np.int64)


def _size_and_time(root: Path, path: str | None, row: int) -> tuple[int, int]:
    if not path:
        raise RejectedInput(f"{root}, row {row} has neither bytes nor a path: remove the row")
    try:
        check_key(path)
        status = (root / path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(path)
    except (RejectedInput, OSError, ValueError):
        raise RejectedInput(
            f"{root}, row {row}: its image is {path[:100]!r}, which is no file inside the data set's folder: save it "
            "again with images embedded (Dataset.save_to_disk does so)"
        ) from None
    return status.st_size, status.st_mtime_ns


def _classes(root: Path, dataset: Any) -> tuple[tuple[str, ...], NDArray[np.int64]]:  # noqa: ANN401
    from datasets import ClassLabel

    features = dataset.features
    typed = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    named = [name for name in CLASS_COLUMNS if name in features]
    name = next((n for n in (*(n for n in named if n in typed), *typed, *named)), None)
    if name is None:
        raise RejectedInput(
            f"{root} has columns {', '.join(map(str, features))[:200]} and none called `label`: add the classes"
        )
    values = dataset.data.column(name).to_pylist()
    wrong = next((row for row, value in enumerate(values) if type(value) not in (int, str)), None)
    if wrong is not None:
        raise RejectedInput(
            f"{root}, row {wrong}: column {name} has {str(values[wrong])[:40]}, needed is a class"
        )
    if name in typed:
        classes = tuple(str(label) for label in features[name].names)
        ids = np.array(values, np.int64)
        outside = np.flatnonzero((ids < 0) | (ids >= len(classes)))
        if len(outside) or len(classes) > MAX_CLASSES or len(set(classes)) < len(classes):
            row = int(outside[0]) if len(outside) else 0
            raise RejectedInput(
                f"{root}, row {row}: class {ids[row]} of {len(classes)}; every image needs one, with a name of its own"
            )
        return classes, ids
    return number_classes(values, lambda row: f"{root}, row {row}")


def _keys(paths: list[str | None]) -> tuple[str, ...]:
    try:
        keys = tuple(check_key(path or "") for path in paths)
    except RejectedInput:
        keys = ()
    if len(set(keys)) < len(paths):
        digits = max(8, len(str(len(paths))))
        return tuple(f"{row:0{digits}d}" for row in range(len(paths)))
    return keys
