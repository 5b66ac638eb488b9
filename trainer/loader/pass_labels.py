"""The labels of one pass as batches take them from the planes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import SparseLabels
from labelstore.scratch.folders import storage_errors
from trainer.loader.planes import Records, as_bytes, labels_of
from trainer.loader.tails import TailFiles


@dataclass(frozen=True, kw_only=True)
class PassLabels:
    """Labels, boxes and flips of one pass: m crops of n images."""

    images: NDArray[np.int64]
    """(n,) image rows of the store, or of the folder; the others have no crop to draw."""
    num_classes: int
    planes: tuple[Records, ...]
    """m planes of (n,) records."""
    tails: TailFiles | None = None
    """What spreads the tails of the records' labels, where they do not say it themselves."""
    rows: NDArray[np.intp] | None = None
    """(n,) places of the images in the planes, which then have more; None where they have these n."""

    def __getstate__(self) -> dict[str, Any]:
        # another process of the node maps the files itself
        planes = [p.filename if isinstance(p, np.memmap) else p for p in self.planes]
        kept = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**kept, "planes": planes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        planes = tuple(_mapped(p) if isinstance(p, (str, Path)) else p for p in state["planes"])
        self.__dict__.update(state, planes=planes)

    @property
    def crops_per_image(self) -> int:
        """m."""
        return len(self.planes)

    def take(self, indices: NDArray[np.intp] | slice = slice(None)) -> Records:
        """Records (b, m) of b images, as indices into `images`: a copy."""
        planes = self._opaque
        if self.rows is not None:
            indices = self.at(np.arange(len(self.images))[indices])
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

    def at(self, indices: NDArray[np.intp]) -> NDArray[np.intp]:
        """Places in the planes of images, as indices into `images`."""
        return indices if self.rows is None else self.rows[indices]

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
        return self.labels_of(self.take(), np.arange(len(self.images)))

    def labels_of(self, records: Records, indices: NDArray[np.intp]) -> SparseLabels:
        """Final labels (b, m, K) of the records (b, m) of b images; with a tail of the image (b, m, K + L)."""
        labels = labels_of(records, self.num_classes)
        return (
            labels if self.tails is None else self.tails.listed(labels, records, self.at(indices))
        )

    def _field(self, name: str) -> NDArray[Any]:
        chosen = slice(None) if self.rows is None else self.rows
        return np.stack([plane[name][chosen] for plane in self.planes], axis=1)


def _mapped(path: str | Path) -> Records:
    """A plane, mapped by another process; StorageError where its file is gone."""
    with storage_errors(Path(path)):
        mapped: Records = np.load(path, mmap_mode="r")
    return mapped


def _check_inside(indices: NDArray[np.intp], count: int) -> None:
    if len(indices) and not (indices.min() >= 0 and indices.max() < count):
        raise IndexError(f"image {indices.max()} of {count}")
