"""One Zarr v3 shard as bytes, in both directions: codec `sharding_indexed`, index at the end.

Inner codecs are [transpose,] bytes, blosc (zstd), crc32c; the index's are bytes, crc32c. Chunks lie in C
order of the shard's grid without gaps, empty ones left out, and the index follows: per chunk its offset
and length as little-endian uint64, both 2**64 - 1 for an empty chunk, then the crc32c of these.

Ours and not zarr-python's, because the crc32c that ends every chunk is compared with the ledger's, the
size of a frame is checked before it is decoded, and a chunk costs no event loop.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc  # type: ignore[import-untyped]
from numpy.typing import NDArray

from labelstore.arrays.array_spec import ArraySpec

CRC_BYTES = 4
EMPTY = 2**64 - 1
"""Offset and length of a chunk that is not stored."""

# With its own threads blosc writes blocks in the order they finish, so equal arrays would give unequal
# bytes, and a fork would inherit a locked pool. zarr-python sets the same switch.
blosc.use_threads = False

_SHUFFLES = {
    "noshuffle": blosc.NOSHUFFLE,
    "shuffle": blosc.SHUFFLE,
    "bitshuffle": blosc.BITSHUFFLE,
}
ROW_NUMBER_LEVEL = 5
"""zstd level of coordinate arrays."""
_HEADER_BYTES = 16
_KEPT_BYTES = 1 << 22
"""Largest decoded chunk that a thread keeps memory for."""
_THREAD = threading.local()
_ZSTD_FORMAT = 4
_MEMCPY_FLAG = 0x02


class Damage(Exception):
    """What is wrong with some bytes, in a few words; a backend adds which file and which images."""


def crc32c(data: bytes | NDArray[np.uint8]) -> int:
    """CRC-32C (Castagnoli) of bytes or of a read-only uint8 view of bytes."""
    return int(google_crc32c.value(data))


# -- one chunk ------------------------------------------------------------------------------------


def axis_order(spec: ArraySpec) -> tuple[int, ...]:
    """Order of the axes inside a chunk: Zarr's transpose `order`."""
    axes = tuple(range(len(spec.shape)))
    return axes[2:] + axes[:2] if spec.row_axes_first else axes


def encode_chunk(spec: ArraySpec, chunk: NDArray[Any]) -> bytes:
    """A chunk of the spec's chunk shape and dtype -> blosc frame followed by its crc32c.

    >>> spec = ArraySpec(path="labels/a/flip", dtype="u1", shape=(4, 4), shard=(4, 4), chunk=(4, 2),
    ...                  dimensions=("image", "crop"), fill=255)
    >>> data = encode_chunk(spec, np.arange(8, dtype="u1").reshape(4, 2))
    >>> out = np.empty((4, 2), dtype="u1")
    >>> decode_chunk(spec, np.frombuffer(data, "u1"), out)
    >>> out.tolist()
    [[0, 1], [2, 3], [4, 5], [6, 7]]
    """
    stored = np.ascontiguousarray(chunk.transpose(axis_order(spec)))
    return _sealed(stored, spec.level, spec.shuffle)


@lru_cache(maxsize=4)
def encode_row_numbers(size: int) -> bytes:
    """The numbers 0 to size - 1 as one chunk, uint32: a coordinate array."""
    return _sealed(np.arange(size, dtype="<u4"), ROW_NUMBER_LEVEL, "shuffle")


def _sealed(values: NDArray[Any], level: int, shuffle: str) -> bytes:
    item_bytes = values.dtype.itemsize
    blocks = blosc.AUTOBLOCKS
    frame: bytes = blosc.compress(values, b"zstd", level, _SHUFFLES[shuffle], blocks, item_bytes)
    return frame + crc32c(frame).to_bytes(CRC_BYTES, "little")


def decode_chunk(spec: ArraySpec, data: NDArray[np.uint8], out: NDArray[Any]) -> None:
    """Decode a chunk's bytes (crc32c at the end, already checked) into `out`, of the chunk's shape.

    Raises Damage when the frame does not say exactly the size that the chunk has; nothing is decoded
    or allocated then.
    """
    frame = data[:-CRC_BYTES]
    _check_frame(frame, spec.chunk_bytes)
    order = axis_order(spec)
    as_stored = out.transpose(order)
    in_place = as_stored.flags.c_contiguous
    target = as_stored if in_place else _between(spec, order)
    try:
        blosc.decompress(frame, target)
    except (RuntimeError, ValueError) as error:
        raise Damage(f"blosc cannot decode it ({error})") from None
    if not in_place:
        _store_in_order(target, order, out)


def _between(spec: ArraySpec, order: tuple[int, ...]) -> NDArray[Any]:
    """Memory of this thread for one decoded chunk in the order of the disk, used again by the next one."""
    shape = [spec.chunk[axis] for axis in order]
    if spec.chunk_bytes > _KEPT_BYTES:
        return np.empty(shape, spec.dtype)
    # reuse the buffer: the kernel maps and clears the pages of every fresh allocation
    held: NDArray[np.uint8] | None = getattr(_THREAD, "memory", None)
    if held is None or held.nbytes < spec.chunk_bytes:
        held = _THREAD.memory = np.empty(spec.chunk_bytes, np.uint8)
    return held[: spec.chunk_bytes].view(spec.dtype).reshape(shape)


def _check_frame(frame: NDArray[np.uint8], raw_bytes: int) -> None:
    if len(frame) < _HEADER_BYTES:
        raise Damage(f"a frame of {len(frame)} bytes")
    flags = int(frame[2])
    sizes = frame[4:_HEADER_BYTES].view("<u4")
    if int(sizes[0]) != raw_bytes:
        raise Damage(f"a frame of {int(sizes[0])} decoded bytes where {raw_bytes} are due")
    if int(sizes[2]) != len(frame):
        raise Damage(f"a frame that says {int(sizes[2])} bytes and has {len(frame)}")
    if not flags & _MEMCPY_FLAG and flags >> 5 != _ZSTD_FORMAT:
        raise Damage(f"a blosc frame of format {flags >> 5} where zstd is due")


def _store_in_order(stored: NDArray[Any], order: tuple[int, ...], out: NDArray[Any]) -> None:
    back = tuple(int(axis) for axis in np.argsort(order))
    rows = out.shape[2:]
    if order[0] != 2 or math.prod(rows) > 64:
        out[...] = stored.transpose(back)
        return
    # row by row: NumPy would make the short row axis the inner loop, three times slower
    for row in np.ndindex(*rows):
        out[(slice(None), slice(None), *row)] = stored[row]


# -- the index ------------------------------------------------------------------------------------


def index_bytes(num_chunks: int) -> int:
    """Size of the index of a shard of so many chunks."""
    return 16 * num_chunks + CRC_BYTES


def pack_chunks(chunks: Sequence[bytes | None], start: int = 0) -> tuple[list[bytes], bytes]:
    """Chunks to be laid one after the other from byte `start` -> (the stored ones, the index)."""
    index = np.full((len(chunks), 2), EMPTY, dtype="<u8")
    stored: list[bytes] = []
    for number, chunk in enumerate(chunks):
        if chunk is not None:
            index[number] = start, len(chunk)
            start += len(chunk)
            stored.append(chunk)
    return stored, seal_index(index)


def seal_index(index: NDArray[np.uint64]) -> bytes:
    """Index (chunks, 2) of offsets and lengths -> its bytes, crc32c at the end."""
    data = index.astype("<u8").tobytes()
    return data + crc32c(data).to_bytes(CRC_BYTES, "little")


def unpack_index(data: bytes, end: int) -> list[tuple[int, int]]:
    """The index's bytes -> (offset, length) of each chunk; EMPTY twice for one that is not stored.

    `end` is where the index itself begins: chunks must lie before it. Raises Damage otherwise.
    """
    stored = int.from_bytes(data[-CRC_BYTES:], "little")
    if crc32c(data[:-CRC_BYTES]) != stored:
        raise Damage("its index does not match its own crc32c")
    index: list[list[int]] = (
        np.frombuffer(data, "<u8", count=(len(data) - CRC_BYTES) // 8).reshape(-1, 2).tolist()
    )
    for offset, length in index:
        if (offset, length) != (EMPTY, EMPTY) and not (CRC_BYTES < length <= end - offset):
            raise Damage(f"its index has a chunk at {offset} of {length} bytes, beyond {end}")
    return [(offset, length) for offset, length in index]


# -- the shard ------------------------------------------------------------------------------------


def padded(spec: ArraySpec, array: NDArray[Any]) -> NDArray[Any]:
    """The array grown to the shard's shape with the sentinel (a view of it if it has that shape)."""
    if array.shape == spec.shard:
        return array
    full = np.full(spec.shard, spec.fill, dtype=spec.dtype)
    full[tuple(slice(size) for size in array.shape)] = array
    return full


def chunk_slices(spec: ArraySpec) -> Iterator[tuple[slice, ...]]:
    """Where each chunk of a shard lies, in C order of the grid."""
    for coordinates in np.ndindex(*spec.grid):
        yield _slices(spec, coordinates)


def _slices(spec: ArraySpec, coordinates: tuple[int, ...]) -> tuple[slice, ...]:
    pairs = zip(coordinates, spec.chunk, strict=True)
    return tuple(slice(place * size, (place + 1) * size) for place, size in pairs)


def chunk_numbers(spec: ArraySpec, columns: range) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """(number in C order, place in the result) of every chunk in the given chunk columns.

    The result is a shard with only these columns, side by side.
    """
    others = list(itertools.product(*(range(count) for count in spec.grid[2:])))
    for place, column in enumerate(columns):
        for number, rest in enumerate(others, column * len(others)):
            yield number, _slices(spec, (0, place, *rest))


def is_empty(spec: ArraySpec, chunk: NDArray[Any]) -> bool:
    """Whether the chunk holds nothing but the sentinel."""
    if isinstance(spec.fill, float) and math.isnan(spec.fill):
        return bool(np.isnan(chunk).all())
    return bool((chunk == spec.fill).all())


def cut_chunks(spec: ArraySpec, array: NDArray[Any]) -> list[NDArray[Any] | None]:
    """A shard's array, padded, cut into its chunks; None for a chunk that is left out."""
    full = padded(spec, array)
    chunks = (full[place] for place in chunk_slices(spec))
    return [None if spec.may_be_empty and is_empty(spec, chunk) else chunk for chunk in chunks]


def encode_shard(spec: ArraySpec, array: NDArray[Any]) -> tuple[bytes, tuple[int | None, ...]]:
    """An array of at most the shard's shape -> (shard bytes, crc32c that ends each chunk).

    The second value has None for chunks that are left out; with nothing else, the shard's bytes are
    its index alone.
    """
    chunks = [
        None if chunk is None else encode_chunk(spec, chunk) for chunk in cut_chunks(spec, array)
    ]
    stored, index = pack_chunks(chunks)
    return b"".join([*stored, index]), tuple(ending_crc(chunk) for chunk in chunks)


def ending_crc(chunk: bytes | None) -> int | None:
    """The crc32c that a chunk's bytes end with; None for an empty chunk."""
    return None if chunk is None else int.from_bytes(chunk[-CRC_BYTES:], "little")


def checked_crc(chunk: NDArray[np.uint8]) -> int | None:
    """The crc32c of a chunk's frame, or None if the chunk does not end with it."""
    computed = crc32c(chunk[:-CRC_BYTES])
    return computed if computed == int.from_bytes(chunk[-CRC_BYTES:].tobytes(), "little") else None
