"""Plain tables out: NumPy archives and Parquet files, one per image block, as `exchange.npz` and `.parquet` read them.

Sparse labels go out as class ids with probabilities (K of each) and the mass of the other classes, dense ones as
probabilities (C) or outputs (C); boxes are pixels. Lost: digests, the teacher.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from labelstore.exchange.exported import Export, ExportedBlock, Writer


class _TableWriter(Writer):
    """Writes one file per image block."""

    ending: ClassVar[str]

    def __init__(self, place: Path, export: Export) -> None:
        self.folder, self.export = place, export
        self._files = 0

    def next_file(self) -> Path:
        """Where the next block goes."""
        self._files += 1
        return self.folder / f"part-{self._files - 1:05d}.{self.ending}"


class NpzWriter(_TableWriter):
    """Writes one archive per image block."""

    ending: ClassVar[str] = "npz"

    def write(self, block: ExportedBlock) -> int:
        """One archive with key, box, flip and the labels."""
        arrays: dict[str, NDArray[Any]] = {
            "key": np.array(block.keys),
            "box": block.boxes,
            "flip": block.flips.astype(np.uint8),
            **block.label_arrays(self.export),
        }
        with self.next_file().open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes them for its own flags
        return 1


class ParquetWriter(_TableWriter):
    """Writes one file per image block, a row per crop."""

    ending: ClassVar[str] = "parquet"

    def write(self, block: ExportedBlock) -> int:
        """Columns key, crop (from 0), store_crop, top, left, height, width, flip and the labels, as lists where
        there are several."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        n, m = block.flips.shape
        keys = pa.array(np.repeat(np.array(block.keys, object), m)).dictionary_encode()
        columns: dict[str, Any] = {
            "key": keys.cast(pa.string()),
            "crop": np.tile(np.arange(m, dtype=np.int32), n),
            "store_crop": np.tile(np.array(self.export.crops, np.int32), n),
        }
        for at, name in enumerate(("top", "left", "height", "width")):
            columns[name] = block.boxes[..., at].reshape(-1)
        columns["flip"] = block.flips.reshape(-1)
        for name, values in block.label_arrays(self.export).items():
            flat = pa.array(np.ascontiguousarray(values).reshape(-1))
            if values.ndim == 2:
                columns[name] = flat
            else:
                columns[f"{name}s"] = pa.FixedSizeListArray.from_arrays(flat, values.shape[-1])
        pq.write_table(pa.table(columns), self.next_file(), compression="zstd")
        return 1
