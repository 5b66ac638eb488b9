"""Array backends: chunk bytes of labels, boxes and masks, and the durable writer that puts them on disk."""

from __future__ import annotations

from pathlib import Path

from labelstore.arrays.array_spec import ArraySpec, EncodedFile
from labelstore.arrays.backend import ArrayBackend
from labelstore.arrays.object_storage import BucketFolder
from labelstore.errors import UsageError

__all__ = ["BACKENDS", "ArrayBackend", "ArraySpec", "EncodedFile", "open_arrays"]

BACKENDS = ("zarr", "hdf5")
"""Values of `--backend`."""


def open_arrays(
    root: Path, backend: str = "zarr", *, source: BucketFolder | None = None
) -> ArrayBackend:
    """The backend of that name on an array folder, which need not exist yet. Opens no file.

    With a `source` shards are read from there, and nothing can be written.
    """
    match backend:
        case "zarr":
            from labelstore.arrays.zarr_arrays import ZarrArrays

            return ZarrArrays(root, source)
        case "hdf5":
            from labelstore.arrays.hdf5_arrays import Hdf5Arrays

            return Hdf5Arrays(root, source)
    raise UsageError(f"backend {backend!r}: choose one of {', '.join(BACKENDS)}")
