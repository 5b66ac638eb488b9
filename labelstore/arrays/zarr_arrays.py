"""Arrays as Zarr v3: one file per array and shard, readable by xarray, tensorstore and zarr-python.

Chunk keys are flat (`c.3.1.0` in the array's folder): a folder per shard would cost a disk block and an
fsync each. Metadata is made by zarr-python; shards are written and read by `sharding`.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from labelstore.arrays import sharding
from labelstore.arrays.base import ArraySpec, EncodedFile, check_arrays
from labelstore.arrays.checked_files import (
    damaged,
    find_record,
    opened_in,
    read_attributes,
    read_chunks,
    read_metadata,
    verify_files,
    wrong_shape,
)
from labelstore.arrays.ranges import RangeReader, RangeSource
from labelstore.arrays.sharding import Damage
from labelstore.arrays.zarr_description import description_problem
from labelstore.errors import DamagedShard
from labelstore.shard_files import FileProblem, ShardFile

if TYPE_CHECKING:
    from zarr.abc.store import Store

_WARNINGS = threading.Lock()
COORDINATES = ("image", "crop")
"""Axes that get a coordinate array of row numbers in every group, so that xarray can select by them."""


@dataclass(frozen=True)
class ZarrArrays:
    """The array folder of a store with `--backend zarr`."""

    name: ClassVar[str] = "zarr"
    root: Path
    source: RangeSource | None = None
    """Where shards are read from instead of `root`, which then holds metadata only."""

    def metadata(
        self,
        specs: Sequence[ArraySpec],
        attributes: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> dict[str, bytes]:
        """Every `zarr.json`, consolidated in each group, and the coordinate arrays; key -> bytes."""
        return _metadata(specs, attributes or {})

    def attributes(self, group: str = "") -> dict[str, Any]:
        """Attributes of a group as they lie on disk. DamagedShard if missing or unreadable."""
        return read_attributes(self.root / group / "zarr.json", "attributes")

    def metadata_problem(self, key: str) -> str | None:
        """What a `zarr.json` says that this package never writes; see `ArrayBackend.metadata_problem`."""
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
            if any(checksum is not None for checksum in checksums):
                record = ShardFile(
                    key=shard_key(spec, index),
                    size=len(data),
                    sha256=sha256(data).hexdigest(),
                    chunks={spec.path: checksums},
                )
                files.append(EncodedFile(record=record, data=data))
        return files

    def read(
        self,
        spec: ArraySpec,
        index: tuple[int, int],
        files: Sequence[ShardFile],
        columns: range | None = None,
        *,
        stored_order: bool = False,
    ) -> NDArray[Any]:
        """One array of one shard, checked against the ledger; see `ArrayBackend.read`."""
        columns = spec.checked_columns(columns)
        out = spec.empty_columns(columns, stored_order=stored_order)
        key = shard_key(spec, index)
        record = find_record(self.root, key, spec, index, files)
        if record is None:
            out.fill(spec.fill)
            return out
        try:
            with opened_in(self.root, self.source, record) as descriptor:
                _read_into(out, spec, record, descriptor, columns)
        except Damage as damage:
            damaged(self.root, key, spec, index, damage, self.source)
        return out

    def verify(
        self,
        specs: Sequence[ArraySpec],
        index: tuple[int, int],
        files: Sequence[ShardFile],
        level: Literal["fast", "digest", "deep"] = "digest",
    ) -> list[FileProblem]:
        """Problems with the files of one shard; see `ArrayBackend.verify`."""
        keys = [(spec, shard_key(spec, index)) for spec in specs]
        return verify_files(self, keys, index, files, level)


def shard_key(spec: ArraySpec, index: tuple[int, int]) -> str:
    """The shard's file, relative to the array folder.

    >>> spec = ArraySpec(path="crops/default/box", dtype="<u2", shape=(8, 6, 4), shard=(4, 6, 4),
    ...                  chunk=(4, 2, 4), dimensions=("image", "crop", "edge"), fill=65535)
    >>> shard_key(spec, (1, 0))
    'crops/default/box/c.1.0.0'
    """
    parts = [str(part) for part in index] + ["0"] * (len(spec.shape) - 2)
    return f"{spec.path}/c.{'.'.join(parts)}"


def _read_into(
    out: NDArray[Any],
    spec: ArraySpec,
    record: ShardFile,
    descriptor: int | RangeReader,
    columns: range,
) -> None:
    recorded = record.chunks.get(spec.path, ())
    num_chunks = math.prod(spec.grid)
    if len(recorded) != num_chunks:
        raise Damage(f"has {len(recorded)} chunks in the ledger where {num_chunks} are due")
    places = dict(sharding.chunk_numbers(spec, columns))
    wanted = {number: recorded[number] for number in places}
    for number, chunk in read_chunks(descriptor, record, wanted, num_chunks, sharding.checked_crc):
        if chunk is None:
            out[places[number]] = spec.fill
        else:
            sharding.decode_chunk(spec, chunk, out[places[number]])


# -- metadata -------------------------------------------------------------------------------------


def _described(path: Path, *keys: str) -> dict[str, Any] | None:
    """The JSON object at `keys` in a `zarr.json`; None where there is none."""
    try:
        return read_attributes(path, *keys)
    except DamagedShard:
        return None


def _metadata(
    specs: Sequence[ArraySpec], attributes: Mapping[str, Mapping[str, Any]]
) -> dict[str, bytes]:
    import zarr
    from zarr.storage import MemoryStore

    files: dict[str, Any] = {}
    store = MemoryStore(files)
    groups = _groups(specs, attributes)
    for group in groups:
        zarr.create_group(store, path=group, attributes=dict(attributes.get(group, {})))
    for spec in specs:
        _create_array(store, spec)
    for group in groups:
        _create_coordinates(store, group, [spec for spec in specs if spec.group == group])
    # the filters are the process's: two threads that set and restore them at once would undo each other's
    with _WARNINGS, warnings.catch_warnings():
        # consolidated metadata is not yet in the Zarr v3 text, and zarr says so; all readers know it
        warnings.filterwarnings("ignore", "Consolidated metadata", category=UserWarning)
        # from the leaves up: a group's consolidated metadata holds its subgroups'
        for group in reversed(groups):
            zarr.consolidate_metadata(store, path=group)
    return {key: files[key].to_bytes() for key in sorted(files)}


def _groups(specs: Sequence[ArraySpec], attributes: Mapping[str, Any]) -> list[str]:
    """Every group, parents before their children, the root ("") first."""
    groups = {""}
    for group in [*attributes, *(spec.group for spec in specs)]:
        parts = group.split("/")
        groups.update("/".join(parts[: n + 1]) for n in range(len(parts)))
    return sorted(groups)


def _create_array(store: Store, spec: ArraySpec) -> None:
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec, TransposeCodec

    dtype = np.dtype(spec.dtype)
    zarr.create_array(
        store,
        name=spec.path,
        shape=spec.shape,
        dtype=dtype,
        shards=spec.shard,
        chunks=spec.chunk,
        filters=[TransposeCodec(order=sharding.axis_order(spec))] if spec.row_axes_first else None,
        compressors=[
            BloscCodec(
                typesize=dtype.itemsize, cname="zstd", clevel=spec.level, shuffle=spec.shuffle
            ),
            Crc32cCodec(),
        ],
        fill_value=spec.fill,
        dimension_names=spec.dimensions,
        chunk_key_encoding={"name": "default", "separator": "."},
        attributes=dict(spec.attributes),
    )


def _create_coordinates(store: Store, group: str, specs: Sequence[ArraySpec]) -> None:
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    for dimension in COORDINATES:
        sizes = {
            size
            for spec in specs
            for size, name in zip(spec.shape, spec.dimensions, strict=True)
            if name == dimension
        }
        if len(sizes) == 1 and not any(spec.name == dimension for spec in specs):
            (size,) = sizes
            zarr.create_array(
                store,
                name=f"{group}/{dimension}".lstrip("/"),
                data=np.arange(size, dtype="<u4"),
                chunks=(size,),
                compressors=[
                    BloscCodec(typesize=4, cname="zstd", shuffle="shuffle"),
                    Crc32cCodec(),
                ],
                dimension_names=(dimension,),
                chunk_key_encoding={"name": "default", "separator": "."},
                config={"write_empty_chunks": True},
            )
