"""Labels of one position of all images, as one .npy file that any process of the node can map.

A plane has a record per image: everything that a crop needs besides pixels. Pass p is m planes, so that
how many crops a pass takes, and where passes meet chunk columns, never moves a byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import SparseLabels
from labelstore.errors import RejectedInput
from labelstore.scratch.npy_writer import NpyWriter
from labelstore.store.layout import MIX_FIELDS

Records = NDArray[np.void]


def record_dtype(
    num_kept: int | None, num_classes: int, *, mixed: bool = False
) -> np.dtype[np.void]:
    """One crop of one image; `num_kept` None is a dense label, which needs no class ids.

    `mixed` crops have the fields of `labelstore.store.layout.MIX_FIELDS` too.
    """
    kept = num_classes if num_kept is None else num_kept
    ids = "<u2" if num_classes <= 65_535 else "<u4"
    fields: list[Any] = [("probs", "<f4", (kept,)), ("rest", "<f4"), ("crop", "<u4")]
    if num_kept is not None:
        fields.append(("class_ids", ids, (kept,)))
    fields += [("box", "<u2", (4,)), ("flip", "?"), ("region", "u1")]
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
    mixes: Mapping[str, NDArray[Any]] | None = None,
) -> Records:
    """Records (n, m) of labels (n, m, ...), sparse or dense as the dtype says; `mixes` if it has their fields."""
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
    for name, values in (mixes or {}).items():
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
    _open: dict[int, Records] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def file(self, position: int) -> Path:
        """Where the plane of a position is."""
        return self.path / f"plane-{position:06d}.npy"

    def has(self, position: int) -> bool:
        """Whether the plane is there, whole."""
        return self.file(position).exists()

    def plane(self, position: int) -> Records:
        """(num_images,) records, mapped read-only; FileNotFoundError where there is none yet."""
        found = self._open.get(position)
        if found is None:
            path = self.file(position)
            found = np.load(path, mmap_mode="r")
            if found.shape != (self.num_images,) or found.dtype != self.dtype:
                raise RejectedInput(
                    f"{path} holds {found.shape} of {found.dtype.itemsize} bytes, wanted "
                    f"({self.num_images},) of {self.dtype.itemsize}: it is of another run, remove its folder"
                )
            self._open[position] = found
        return found

    def forget(self, before: int, *, remove: bool) -> None:
        """Close planes of positions below `before`, and remove their files if asked."""
        for position in [p for p in list(self._open) if p < before]:
            self._open.pop(position, None)
        if remove:
            for path in self.path.glob("plane-*.npy"):
                if int(path.stem.removeprefix("plane-")) < before:
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


@dataclass(frozen=True, kw_only=True)
class PassLabels:
    """Labels, boxes and flips of one pass: m crops of n images."""

    images: NDArray[np.int64]
    """(n,) image rows of the store, or of the folder; the others have no crop to draw."""
    num_classes: int
    planes: tuple[Records, ...]
    """m planes of (n,) records."""

    @property
    def crops_per_image(self) -> int:
        """m."""
        return len(self.planes)

    def take(self, indices: NDArray[np.intp] | slice = slice(None)) -> Records:
        """Records (b, m) of b images, as indices into `images`: a copy."""
        planes = self._opaque
        if not isinstance(indices, slice):
            # "clip" spares NumPy a copy that it keeps for when an index is outside
            _check_inside(indices, len(planes[0]))
            chosen = [np.take(plane, indices, mode="clip") for plane in planes]
        else:
            chosen = [plane[indices] for plane in planes]
        records = np.empty((len(chosen[0]), len(chosen)), self.planes[0].dtype)
        opaque = as_bytes(records)
        for nth, column in enumerate(chosen):
            opaque[:, nth] = column
        return records

    @cached_property
    def _opaque(self) -> tuple[NDArray[Any], ...]:
        # plain arrays over the same memory: NumPy's maps are slow to index
        return tuple(as_bytes(np.asarray(plane)) for plane in self.planes)

    @property
    def crops(self) -> NDArray[np.uint32]:
        """(n, m) crop numbers."""
        return self._field("crop")

    @property
    def boxes(self) -> NDArray[np.uint16]:
        """(n, m, 4) top, left, height, width in pixels."""
        return self._field("box")

    @property
    def flips(self) -> NDArray[np.bool_]:
        """(n, m)."""
        return self._field("flip")

    @property
    def regions(self) -> NDArray[np.uint8]:
        """(n, m) region codes; IMPORTANT everywhere without a mask."""
        return self._field("region")

    @property
    def labels(self) -> SparseLabels:
        """(n, m, K) final labels: re-tempered, and calibrated where a mask says so."""
        return labels_of(self.take(), self.num_classes)

    def _field(self, name: str) -> NDArray[Any]:
        return np.stack([plane[name] for plane in self.planes], axis=1)


def _check_inside(indices: NDArray[np.intp], count: int) -> None:
    if len(indices) and not (indices.min() >= 0 and indices.max() < count):
        raise IndexError(f"image {indices.max()} of {count}")


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
