"""Plain tables out: NumPy archives and Parquet files, one per image block, as `exchange.npz` and `.parquet` read them.

Sparse labels go out as `class_ids` with `probs` (K of each), dense ones as `probs` (C); boxes are pixels. Lost: the
spread of the mass beyond the K kept classes (readers take one minus the sum), digests, the teacher.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import SparseLabels
from labelstore.exchange.exporting import ExportedBlock

if TYPE_CHECKING:
    from labelstore.store import LabelSet


class NpzWriter:
    """Writes one archive per image block."""

    def __init__(self, folder: Path, labels: LabelSet) -> None:
        self.folder = folder
        self._files = 0

    def write(self, block: ExportedBlock) -> int:
        """One archive with key, box, flip and the labels."""
        values = _labels(block)
        arrays: dict[str, NDArray[Any]] = {
            "key": np.array(block.keys),
            "box": block.boxes,
            "flip": block.flips.astype(np.uint8),
            **{name.removesuffix("s"): array for name, array in values.items()},
        }
        with (self.folder / f"part-{self._files:05d}.npz").open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes them for its own flags
        self._files += 1
        return 1


class ParquetWriter:
    """Writes one file per image block, a row per crop."""

    def __init__(self, folder: Path, labels: LabelSet) -> None:
        self.folder = folder
        self._files = 0

    def write(self, block: ExportedBlock) -> int:
        """Columns key, crop, top, left, height, width, flip and the labels as lists."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        n, m = block.flips.shape
        columns: dict[str, Any] = {
            "key": pa.array(np.repeat(np.array(block.keys, object), m)).dictionary_encode(),
            "crop": np.tile(np.arange(block.first_crop, block.first_crop + m, dtype=np.int32), n),
        }
        for at, name in enumerate(("top", "left", "height", "width")):
            columns[name] = block.boxes[..., at].reshape(-1)
        columns["flip"] = block.flips.reshape(-1)
        for name, values in _labels(block).items():
            flat = pa.array(np.ascontiguousarray(values).reshape(-1))
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[-1])
        columns["key"] = columns["key"].cast(pa.string())
        path = self.folder / f"part-{self._files:05d}.parquet"
        pq.write_table(pa.table(columns), path, compression="zstd")
        self._files += 1
        return 1


def _labels(block: ExportedBlock) -> dict[str, NDArray[Any]]:
    if isinstance(block.labels, SparseLabels):
        return {
            "class_ids": block.labels.class_ids.astype(np.uint32),
            "probs": block.labels.probs.astype(np.float32),
        }
    return {"probs": block.labels.astype(np.float32)}
