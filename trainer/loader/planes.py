"""Labels of one position of all images, as one .npy file that any process of the node can map.

A plane has a record per image: everything that a crop needs besides pixels. Pass p is m planes, so that
how many crops a pass takes, and where passes meet chunk columns, never moves a byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import SparseLabels
from labelstore.errors import RejectedInput
from labelstore.scratch.folders import storage_errors
from labelstore.scratch.npy_writer import NpyWriter
from labelstore.store.layout import MIX_FIELDS

Records = NDArray[np.void]


def record_dtype(
    num_kept: int | None, num_classes: int, *, mixed: bool = False, tailed: bool = False
) -> np.dtype[np.void]:
    """One crop of one image; `num_kept` None is a dense label, which needs no class ids.

    `mixed` crops have the fields of `labelstore.store.layout.MIX_FIELDS` too, `tailed` ones what spreads their tail
    over their image's table.
    """
    kept = num_classes if num_kept is None else num_kept
    ids = "<u2" if num_classes <= 65_535 else "<u4"
    fields: list[Any] = [("probs", "<f4", (kept,)), ("rest", "<f4"), ("crop", "<u4")]
    if num_kept is not None:
        fields.append(("class_ids", ids, (kept,)))
    fields += [("box", "<u2", (4,)), ("flip", "?"), ("region", "u1")]
    if tailed:
        fields += [("scale", "<f4"), ("shard", "<u2")]
    if mixed:
        fields += [(field.name, field.dtype, field.shape) for field in MIX_FIELDS]
    return np.dtype(fields, align=True)


def make_records(
    dtype: np.dtype[np.void],
    labels: SparseLabels | NDArray[np.float32],
    *,
    boxes: NDArray[np.uint16],
    flips: NDArray[np.bool_],
    regions: NDArray[np.uint8] | int,
    crops: NDArray[Any],
    further: Mapping[str, NDArray[Any] | int],
) -> Records:
    """Records (n, m) of labels (n, m, ...), sparse or dense as the dtype says; `further` fields where it has any."""
    records = np.empty(boxes.shape[:-1], dtype)
    if isinstance(labels, SparseLabels):
        records["class_ids"] = labels.class_ids
        records["probs"] = labels.probs
        records["rest"] = labels.rest
    else:
        records["probs"] = labels
        records["rest"] = 0
    records["box"] = boxes
    records["flip"] = flips
    records["region"] = regions
    records["crop"] = crops
    for name, values in further.items():
        records[name] = values
    return records


def as_bytes(records: NDArray[Any]) -> NDArray[Any]:
    """The same records as opaque bytes: NumPy moves those whole, ten times faster than by field."""
    return records.view(np.dtype((np.void, records.dtype.itemsize)))


@dataclass(kw_only=True)
class PlaneFolder:
    """Planes of one run in one folder. Reading needs nothing else, so that this travels to workers."""

    path: Path
    num_images: int
    dtype: np.dtype[np.void]
    prefix: str = "plane"
    """What the files' names begin with."""
    _open: dict[int, Records] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def file(self, position: int) -> Path:
        """Where the plane of a position is."""
        return self.path / f"{self.prefix}-{position:06d}.npy"

    def has(self, position: int) -> bool:
        """Whether the plane is there, whole."""
        return self.file(position).exists()

    def plane(self, position: int) -> Records:
        """(num_images,) records, mapped read-only; StorageError where there is none, or none any more."""
        plane = self._open.get(position)
        if plane is None:
            path = self.file(position)
            # checked a moment ago, but a scratch folder may be cleared while a run reads it
            with storage_errors(path):
                plane = np.load(path, mmap_mode="r")
            if plane.shape != (self.num_images,) or plane.dtype != self.dtype:
                raise RejectedInput(
                    f"{path} holds {plane.shape} of {plane.dtype.itemsize} bytes, wanted "
                    f"({self.num_images},) of {self.dtype.itemsize}: it is of another run, remove its folder"
                )
            self._open[position] = plane
        return plane

    def forget(self, before: int, *, remove: bool) -> None:
        """Close planes of positions below `before`, and remove their files if asked."""
        for position in [p for p in list(self._open) if p < before]:
            self._open.pop(position, None)
        if remove:
            for path in self.path.glob(f"{self.prefix}-*.npy"):
                if int(path.stem.removeprefix(f"{self.prefix}-")) < before:
                    path.unlink(missing_ok=True)


class PlaneWriter:
    """Planes of consecutive positions being written, row ranges in any order and from any thread.

    They get their names on leaving the `with` block without an error: a plane that exists is whole.
    """

    def __init__(self, folder: PlaneFolder, positions: range) -> None:
        self._writers = [
            NpyWriter(folder.file(position), (folder.num_images,), folder.dtype)
            for position in positions
        ]
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            for writer in self._writers:
                opened.enter_context(writer)
            self._open = opened.pop_all()
        return self

    def write(self, first_row: int, planes: Sequence[Records] | Records) -> None:
        """Rows from `first_row` on of every position: (positions, rows) records, contiguous per position."""
        for writer, records in zip(self._writers, planes, strict=True):
            writer.write(first_row, records)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, trace)


def labels_of(records: Records, num_classes: int) -> SparseLabels:
    """Labels of records of any shape, as copies; dense ones list all C classes, one row for all. Ids are int64."""
    names = records.dtype.names or ()
    if "class_ids" in names:
        class_ids = records["class_ids"].astype(np.int64)
    else:
        every = np.arange(num_classes, dtype=np.int64)
        class_ids = np.broadcast_to(every, (*records.shape, num_classes))
    return SparseLabels(
        class_ids=class_ids,
        probs=np.ascontiguousarray(records["probs"]),
        rest=np.ascontiguousarray(records["rest"]),
    )
