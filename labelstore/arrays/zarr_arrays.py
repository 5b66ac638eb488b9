"""Arrays as Zarr v3: one file per array and shard, readable by xarray, tensorstore and zarr-python.

Chunk keys are flat (`c.3.1.0` in the array's folder): a folder per shard would cost a disk block and an
fsync each. `zarr_metadata` describes them; shards are written and read by `sharding`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from labelstore.arrays import sharding
from labelstore.arrays.array_spec import ArraySpec, EncodedFile, check_arrays
from labelstore.arrays.backend import ArrayBackend, wrong_shape
from labelstore.arrays.checked_files import read_attributes, read_metadata
from labelstore.arrays.shard_files import ShardFile
from labelstore.arrays.zarr_metadata import description_problem, metadata_files
from labelstore.errors import DamagedShard


class ZarrArrays(ArrayBackend):
    """The array folder of a store with `--backend zarr`."""

    name: ClassVar[str] = "zarr"

    def metadata(
        self,
        specs: Sequence[ArraySpec],
        attributes: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> dict[str, bytes]:
        """Every `zarr.json`, consolidated in each group, and the coordinate arrays; key -> bytes."""
        return metadata_files(specs, attributes or {})

    def attributes(self, group: str = "") -> dict[str, Any]:
        """Attributes of a group as they lie on disk. DamagedShard if missing or unreadable."""
        return read_attributes(self.root / group / "zarr.json", "attributes")

    def metadata_problem(self, key: str) -> str | None:
        """Return what a `zarr.json` says that this package never writes; see `ArrayBackend.metadata_problem`."""
        if key.rpartition("/")[2] != "zarr.json":
            return None
        data = read_metadata(self.root / key)
        return None if data is None else description_problem(data)

    def undescribed(self, specs: Sequence[ArraySpec]) -> dict[str, str]:
        """Arrays that a `zarr.json` lacks or gives another shape; see `ArrayBackend.undescribed`."""
        root = _described(self.root / "zarr.json", "consolidated_metadata", "metadata")
        problems: dict[str, str] = {}
        for spec in specs:
            key = f"{spec.path}/zarr.json"
            own = _described(self.root / key)
            if own is None:
                problems[key] = f"is missing: other programs do not see {spec.group}"
            elif own.get("shape") != list(spec.shape):
                problems[key] = wrong_shape(spec, own.get("shape"))
            if root is None or spec.path not in root:
                problems.setdefault("zarr.json", f"does not name {spec.path}")
            elif root[spec.path].get("shape") != list(spec.shape):
                problems.setdefault("zarr.json", wrong_shape(spec, root[spec.path].get("shape")))
        return problems

    def contents_problem(self, record: ShardFile, specs: Sequence[ArraySpec]) -> str | None:
        """None: a Zarr shard is chunks and their index, and both were compared with the ledger."""
        return None

    def encode_shard(
        self, specs: Sequence[ArraySpec], index: tuple[int, int], arrays: Mapping[str, NDArray[Any]]
    ) -> list[EncodedFile]:
        """All arrays of one shard, one file each; an array that may be empty, and is, has none."""
        check_arrays(specs, arrays)
        files = []
        for spec in specs:
            data, checksums = sharding.encode_shard(spec, arrays[spec.name])
            if set(checksums) != {None}:
                record = ShardFile(
                    key=shard_key(spec, index),
                    size=len(data),
                    sha256=sha256(data).hexdigest(),
                    chunks={spec.path: checksums},
                )
                files.append(EncodedFile(record=record, data=data))
        return files

    def file_key(self, spec: ArraySpec, index: tuple[int, int]) -> str:
        """`labels/resnet50/probability/c.1.0.0`: one for each array."""
        return shard_key(spec, index)

    def _first_chunk(self, spec: ArraySpec, record: ShardFile) -> int:
        return 0

    def _checksum(self, chunk: NDArray[np.uint8]) -> int | None:
        return sharding.checked_crc(chunk)

    def _decode(self, spec: ArraySpec, chunk: NDArray[np.uint8], out: NDArray[Any]) -> None:
        sharding.decode_chunk(spec, chunk, out)


def shard_key(spec: ArraySpec, index: tuple[int, int]) -> str:
    """The shard's file, relative to the array folder.

    >>> spec = ArraySpec(path="crops/default/box", dtype="<u2", shape=(8, 6, 4), shard=(4, 6, 4),
    ...                  chunk=(4, 2, 4), dimensions=("image", "crop", "edge"), fill=65535)
    >>> shard_key(spec, (1, 0))
    'crops/default/box/c.1.0.0'
    """
    parts = [str(part) for part in index] + ["0"] * (len(spec.shape) - 2)
    return f"{spec.path}/c.{'.'.join(parts)}"


def _described(path: Path, *keys: str) -> dict[str, Any] | None:
    """The JSON object at `keys` in a `zarr.json`; None where there is none."""
    try:
        return read_attributes(path, *keys)
    except DamagedShard:
        return None
