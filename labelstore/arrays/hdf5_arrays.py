"""Arrays as HDF5: one closed file per shard with all its arrays, readable by any HDF5 program.

Built in memory with the oldest file format (nothing to recover after a crash), built-in filters shuffle,
gzip and fletcher32. After the end of the HDF5 file follows the chunk index of `sharding`, arrays in order
of their paths. We read by that index and never give a file to libhdf5: its metadata has no checksum, one
lock serves all threads, and links in a file from elsewhere could lead anywhere.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import zlib
from collections.abc import Collection, Mapping, Sequence
from hashlib import sha256
from typing import Any, ClassVar

import numpy as np
from numcodecs.fletcher32 import Fletcher32  # type: ignore[import-untyped]
from numpy.typing import NDArray

from labelstore.arrays import sharding
from labelstore.arrays.array_spec import ArraySpec, EncodedFile, check_arrays
from labelstore.arrays.backend import ArrayBackend, wrong_shape
from labelstore.arrays.checked_files import opened, read_all, read_attributes, read_metadata
from labelstore.arrays.shard_files import ShardFile
from labelstore.arrays.sharding import Damage
from labelstore.errors import UsageError
from labelstore.untrusted.refusal import Refused, inflated

METADATA_KEY = "arrays.json"
_FLETCHER_BYTES = 4
_IN_MEMORY = itertools.count()


class Hdf5Arrays(ArrayBackend):
    """The array folder of a store with `--backend hdf5`."""

    name: ClassVar[str] = "hdf5"

    def metadata(
        self,
        specs: Sequence[ArraySpec],
        attributes: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> dict[str, bytes]:
        """One JSON file that lists the arrays and the groups' attributes; key -> bytes."""
        groups = {"": {}, **{group: dict(values) for group, values in (attributes or {}).items()}}
        arrays = {
            spec.path: {
                "dtype": spec.dtype,
                "shape": spec.shape,
                "shard": spec.shard,
                "chunk": spec.chunk,
                "dimensions": spec.dimensions,
                "fill": "NaN" if math.isnan(spec.fill) else spec.fill,
                "attributes": dict(spec.attributes),
            }
            for spec in specs
        }
        record = {"backend": self.name, "attributes": groups, "arrays": arrays}
        text = json.dumps(record, indent=1, sort_keys=True, allow_nan=False)
        return {METADATA_KEY: text.encode()}

    def attributes(self, group: str = "") -> dict[str, Any]:
        """Attributes of a group as they lie on disk. DamagedShard if missing or unreadable."""
        return read_attributes(self.root / METADATA_KEY, "attributes", group)

    def metadata_problem(self, key: str) -> str | None:
        """Return what `arrays.json` says that this package never writes; see `ArrayBackend.metadata_problem`."""
        data = read_metadata(self.root / key)
        if data is None or key != METADATA_KEY:
            return None
        try:
            record = json.loads(data)
            known = {"backend", "attributes", "arrays"} == set(record) and record[
                "backend"
            ] == "hdf5"
            sides = [
                side
                for array in record["arrays"].values()
                for side in (*array["shape"], *array["shard"], *array["chunk"])
            ]
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return "is not metadata that labelstore writes"
        sound = known and all(type(side) is int and 0 <= side <= 1 << 40 for side in sides)
        return None if sound else "is not metadata that labelstore writes"

    def undescribed(self, specs: Sequence[ArraySpec]) -> dict[str, str]:
        """Arrays that `arrays.json` lacks or gives another shape; see `ArrayBackend.undescribed`."""
        arrays = read_attributes(self.root / METADATA_KEY, "arrays")
        for spec in specs:
            if spec.path not in arrays:
                return {METADATA_KEY: f"does not name {spec.path}"}
            if (found := arrays[spec.path].get("shape")) != list(spec.shape):
                return {METADATA_KEY: wrong_shape(spec, found)}
        return {}

    def contents_problem(self, record: ShardFile, specs: Sequence[ArraySpec]) -> str | None:
        """Return what an HDF5 file holds beside these arrays: links, data kept elsewhere, other filters."""
        try:
            with opened(self.root / record.key, record) as descriptor:
                data = read_all(descriptor, record.size)
        except Damage as damage:
            return str(damage)
        return contents_problem(data, [spec.name for spec in specs])

    def encode_shard(
        self, specs: Sequence[ArraySpec], index: tuple[int, int], arrays: Mapping[str, NDArray[Any]]
    ) -> list[EncodedFile]:
        """All arrays of one shard, which are of one group, in one file."""
        check_arrays(specs, arrays)
        if len({spec.group for spec in specs}) != 1:
            raise UsageError(
                f"arrays {[spec.path for spec in specs]}: one shard takes the arrays of one group"
            )
        ordered = sorted(specs, key=lambda spec: spec.path)
        chunks = {spec.path: _encode_chunks(spec, arrays[spec.name]) for spec in ordered}
        data = _build_file(ordered, index, chunks)
        record = ShardFile(
            key=self.file_key(specs[0], index),
            size=len(data),
            sha256=sha256(data).hexdigest(),
            chunks={
                path: tuple(None if part is None else sharding.crc32c(part) for part in parts)
                for path, parts in chunks.items()
            },
        )
        return [EncodedFile(record=record, data=data)]

    def file_key(self, spec: ArraySpec, index: tuple[int, int]) -> str:
        """`crops/default/1.0.h5`: one for all arrays of a shard."""
        return f"{spec.group}/{index[0]}.{index[1]}.h5".lstrip("/")

    def _first_chunk(self, spec: ArraySpec, record: ShardFile) -> int:
        # chunks lie in the order of the arrays' paths
        return sum(len(record.chunks[path]) for path in record.chunks if path < spec.path)

    def _checksum(self, chunk: NDArray[np.uint8]) -> int | None:
        return sharding.crc32c(chunk)

    def _decode(self, spec: ArraySpec, chunk: NDArray[np.uint8], out: NDArray[Any]) -> None:
        try:
            raw = inflated(chunk[:-_FLETCHER_BYTES].data, spec.chunk_bytes)
        except Refused as reason:
            raise Damage(f"a chunk that {reason}") from None
        if len(raw) != spec.chunk_bytes:
            raise Damage(f"a chunk that is not of {spec.chunk_bytes} decoded bytes")
        elements = np.frombuffer(raw, "u1").reshape(np.dtype(spec.dtype).itemsize, -1)
        out[...] = np.ascontiguousarray(elements.T).view(spec.dtype).reshape(spec.chunk)


# -- one chunk: shuffle, gzip, fletcher32, in the order of HDF5's filter pipeline ------------------


def _encode_chunks(spec: ArraySpec, array: NDArray[Any]) -> list[bytes | None]:
    return [
        None if chunk is None else _encode_chunk(spec, chunk)
        for chunk in sharding.cut_chunks(spec, array)
    ]


def _encode_chunk(spec: ArraySpec, chunk: NDArray[Any]) -> bytes:
    elements = np.ascontiguousarray(chunk).reshape(-1, 1).view("u1")
    stored = zlib.compress(elements.T.tobytes(), spec.level)
    return bytes(Fletcher32().encode(stored))


# -- the file --------------------------------------------------------------------------------------


def _build_file(
    specs: Sequence[ArraySpec], index: tuple[int, int], chunks: Mapping[str, list[bytes | None]]
) -> bytes:
    import h5py  # type: ignore[import-untyped]

    entries: list[tuple[int, int]] = []
    # a name of its own, which is not part of the bytes: threads may build shards side by side
    name = f"shard-{next(_IN_MEMORY)}"
    with h5py.File(name, "w", driver="core", backing_store=False, libver="earliest") as file:
        file.attrs["group"] = specs[0].group
        file.attrs["image_block"], file.attrs["crop_shard"] = index
        for spec in specs:
            dataset = file.create_dataset(
                spec.name,
                shape=spec.shard,
                dtype=spec.dtype,
                chunks=spec.chunk,
                fillvalue=np.dtype(spec.dtype).type(spec.fill),
                shuffle=True,
                compression="gzip",
                compression_opts=spec.level,
                fletcher32=True,
                track_times=False,
            )
            for axis, dimension in enumerate(spec.dimensions):
                dataset.dims[axis].label = dimension
            for name, value in spec.attributes.items():
                dataset.attrs[name] = json.dumps(value) if isinstance(value, dict) else value
            for place, data in zip(sharding.chunk_slices(spec), chunks[spec.path], strict=True):
                if data is None:
                    entries.append((sharding.EMPTY, sharding.EMPTY))
                    continue
                corner = tuple(part.start for part in place)
                dataset.id.write_direct_chunk(corner, data)
                stored = dataset.id.get_chunk_info_by_coord(corner)
                entries.append((stored.byte_offset, stored.size))
        file.flush()
        image: bytes = file.id.get_file_image()
    return image + sharding.seal_index(np.array(entries, dtype="<u8"))


FILTERS = {1, 2, 3}
"""deflate, shuffle, fletcher32: those of `hdf5_arrays`."""
SIGNATURE = b"\x89HDF\r\n\x1a\n"


def contents_problem(data: bytes, names: Collection[str]) -> str | None:
    """Return what the bytes of one shard file hold besides the datasets of these names; None when all is well."""
    import h5py

    if not data.startswith(SIGNATURE):
        return "is not an HDF5 file"
    try:
        # from memory: nothing that a link names can be opened relative to it, and no link is followed here
        with h5py.File(io.BytesIO(data), "r") as file:
            return _group_problem(file, names)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        return f"is not an HDF5 file that labelstore writes ({str(error).splitlines()[0][:100]})"


def _group_problem(file: Any, names: Collection[str]) -> str | None:  # noqa: ANN401 - h5py has no types
    import h5py

    held = list(file)
    for name in held:
        link = file.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            kind = {h5py.SoftLink: "a soft link", h5py.ExternalLink: "an external link"}.get(
                type(link), "a link"
            )
            return f"holds {kind} {name!r}"
    if sorted(held) != sorted(names):
        return f"holds {sorted(held)} where {sorted(names)} are due"
    for name in held:
        node = file[name]
        if not isinstance(node, h5py.Dataset):
            return f"holds {name!r}, which is no dataset"
        if node.is_virtual:
            return f"holds a virtual dataset {name!r}"
        if node.external:
            return f"keeps {name!r} in another file"
        created = node.id.get_create_plist()
        filters = {created.get_filter(n)[0] for n in range(created.get_nfilters())}
        if node.chunks is None or not filters <= FILTERS:
            return f"stores {name!r} in another way than labelstore does"
    return None
