"""Images as rows of the table `image_blocks`: up to 1,024 images in one row, every fact of them a packed column.

One SQL row per image takes 139 bytes with the index of its keys, most of it the same text twice; packed, an image
takes its 16 bytes of digest and some 30 of all the rest. FORMAT.md has the encoding of each column.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, func, select

from labelstore.catalogue.digests import Row, num_rows, verified_batches
from labelstore.catalogue.record_columns import check_types, json_text
from labelstore.catalogue.schema import image_blocks
from labelstore.errors import DamagedShard
from labelstore.images import MAX_KEY_BYTES, check_keys
from labelstore.untrusted.refusal import inflated

BLOCK_ROWS = 1024
"""Image rows of one table row; row i is in block i // 1024."""
DIGEST_BYTES = 16
REGISTERED = {"class_id": "<i4", "size": "<i8", "mtime_ns": "<i8"}
"""What is known of an image when it joins the store."""
DECODED = {"width": "<i4", "height": "<i4"}
"""What its first decoding adds, with the digest."""
NAMES = tuple(column.name for column in image_blocks.columns)
_BLANK: dict[str, Any] = {"key": "", "bad": None, "digest": 0, "has_digest": False, "free": True}
_DTYPES: dict[str, Any] = {
    "key": object,
    "bad": object,
    "digest": np.uint8,
    "has_digest": bool,
    "free": bool,
    **{name: np.dtype(kind).newbyteorder("=") for name, kind in {**REGISTERED, **DECODED}.items()},
}

Columns = dict[str, NDArray[Any]]


def damaged(what: str) -> DamagedShard:
    """The error for a table that does not hold what was written, `what` being what is wrong with it."""
    return DamagedShard(f"catalogue table image_blocks {what}: restore the catalogue from a copy")


def blank_columns(count: int) -> Columns:
    """Columns of `count` rows that no image has: keys empty, numbers -1, `free` True."""
    shapes = {"digest": (count, DIGEST_BYTES)}
    return {
        name: np.full(shapes.get(name, count), _BLANK.get(name, -1), dtype)
        for name, dtype in _DTYPES.items()
    }


def head_checksum(block: int, num_rows: int, num_images: int) -> int:
    """CRC-32 of the numbers that are read without the rest of a row."""
    return zlib.crc32(f"{block} {num_rows} {num_images}".encode())


def checked_head(head: Sequence[Any]) -> tuple[int, int, int]:
    """(block, num_rows, num_images) of the first four columns; DamagedShard where they contradict each other."""
    block, num_rows, num_images, checksum = head
    if not (
        all(isinstance(value, int) for value in head)
        and 0 <= block < 1 << 31
        and 1 <= num_images <= num_rows <= BLOCK_ROWS
        and checksum == head_checksum(block, num_rows, num_images)
    ):
        raise damaged(f"has a row {str(block)[:20]} with impossible numbers")
    return block, num_rows, num_images


def checked_heads(heads: Iterable[Sequence[Any]]) -> list[tuple[int, int, int]]:
    """`checked_head` of several rows."""
    return [checked_head(head) for head in heads]


def pack(block: int, columns: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """The row of a block as column values; the columns hold its rows up to its last image."""
    keys = columns["key"].tolist()
    num_images = len(keys) - int(columns["free"].sum())
    return {
        "block": block,
        "num_rows": len(keys),
        "num_images": num_images,
        "checksum": head_checksum(block, len(keys), num_images),
        "key_crc": np.array([key_crc(key) for key in keys], "<u4").tobytes(),
        "key": zlib.compress("\n".join(keys).encode(), 9),
        **{name: _packed(columns[name], kind) for name, kind in REGISTERED.items()},
        **pack_decoded(columns),
        "bad": pack_bad(columns["bad"]),
    }


def key_crc(key: str) -> int:
    """CRC-32 of a key's UTF-8: what blocks are searched by."""
    return zlib.crc32(key.encode())


def pack_decoded(columns: Mapping[str, NDArray[Any]]) -> dict[str, bytes | None]:
    """Width, height and digest of a block's rows; all NULL while none is decoded."""
    if not columns["has_digest"].any():
        return dict.fromkeys((*DECODED, "digest"))
    packed: dict[str, bytes | None] = {
        name: _packed(columns[name], kind) for name, kind in DECODED.items()
    }
    return {**packed, "digest": columns["digest"].tobytes()}


def pack_bad(reasons: NDArray[Any]) -> str | None:
    """JSON {row in the block: why it was left out}, or NULL."""
    given = {str(at): why for at, why in enumerate(reasons) if why is not None}
    return json_text(given) if given else None


def unpack(row: Row, *, keys: bool = True) -> Columns:
    """Inverse of `pack`: columns over the block's rows; DamagedShard for a row that it did not write.

    Without `keys`, which are most of the work, the column `key` is left blank where no row is free.
    """
    check_types(image_blocks, row)
    values = dict(zip(NAMES, row, strict=True))
    _, num_rows, num_images = checked_head(row[:4])
    columns = blank_columns(num_rows)
    try:
        if keys or num_images < num_rows:
            columns["key"][:] = checked_keys(values["key"], num_rows)
            columns["free"] = columns["key"] == ""
        else:
            columns["free"][:] = False
        if columns["free"].sum() != num_rows - num_images or columns["free"][-1]:
            raise ValueError("free rows")
        for name, kind in REGISTERED.items():
            columns[name][:] = _unpacked(values[name], kind, num_rows)
        _unpack_decoded(columns, values)
        for at, why in json.loads(values["bad"] or "{}").items():
            columns["bad"][range(num_rows)[int(at)]] = str(why)
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        raise damaged(f"holds what nobody wrote there (block {values['block']})") from None
    return columns


def unpack_keys(packed: bytes, num_rows: int) -> list[str]:
    """Keys of a block's rows, empty for free ones; ValueError for other bytes."""
    keys = inflated(packed, num_rows * (MAX_KEY_BYTES + 1)).decode().split("\n")
    if len(keys) != num_rows:
        raise ValueError(len(keys))
    return keys


def checked_keys(packed: bytes, num_rows: int) -> list[str]:
    """`unpack_keys`; RejectedInput for keys that are no paths below an image folder."""
    keys = unpack_keys(packed, num_rows)
    check_keys(list(filter(None, keys)))
    return keys


def _unpack_decoded(columns: Columns, values: Mapping[str, Any]) -> None:
    if values["digest"] is None:
        return
    for name, kind in DECODED.items():
        columns[name][:] = _unpacked(values[name], kind, len(columns[name]))
    columns["digest"][:] = np.frombuffer(values["digest"], np.uint8).reshape(-1, DIGEST_BYTES)
    columns["has_digest"] = columns["width"] >= 0


def _packed(values: NDArray[Any], kind: str) -> bytes:
    # lowest bytes of all rows first, then the next: the high ones are equal and compress to nothing
    plain = np.ascontiguousarray(values.astype(kind)).view(np.uint8).reshape(len(values), -1)
    return zlib.compress(plain.T.tobytes(), 9)


def _unpacked(packed: bytes, kind: str, num_rows: int) -> NDArray[Any]:
    width = np.dtype(kind).itemsize
    planes = np.frombuffer(inflated(packed, num_rows * width), np.uint8).reshape(width, num_rows)
    return np.ascontiguousarray(planes.T).view(kind).reshape(num_rows)


MAX_FREE_ROWS = 1 << 22
"""Most rows without an image that a catalogue may have: every row takes memory."""
NO_IMAGE = "no image has this row"
"""What the column `bad` says of such a row."""
_KEY = NAMES.index("key")
HEAD = (
    image_blocks.c.block,
    image_blocks.c.num_rows,
    image_blocks.c.num_images,
    image_blocks.c.checksum,
)


def counts(conn: Connection) -> tuple[int, int]:
    """(images, image rows): the second is larger where rows were left free.

    DamagedShard for a number that no catalogue of so many images has.
    """
    written = num_rows(conn, image_blocks)
    # before memory is asked for: the number is only what somebody wrote into another table
    there = conn.execute(select(func.count()).select_from(image_blocks)).scalar()
    if there != written:
        raise damaged(f"has {there} rows where {written} were written")
    heads = checked_heads(conn.execute(select(*HEAD).order_by(HEAD[0])))
    count = sum(num_images for _, _, num_images in heads)
    end = heads[-1][0] * BLOCK_ROWS + heads[-1][1] if heads else 0
    if end > count + MAX_FREE_ROWS:
        raise damaged(f"has {count} images and row {end - 1}")
    return count, end


class ImageColumns(Mapping[str, NDArray[Any]]):
    """Columns over image rows, each read when it is first asked for: `read(name)` is called once for it."""

    def __init__(self, read: Callable[[str], NDArray[Any]]) -> None:
        self._columns: dict[str, NDArray[Any]] = {}
        self._read = read

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in _DTYPES:
            raise KeyError(name)
        if name not in self._columns:
            self._columns[name] = self._read(name)
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_DTYPES)

    def __len__(self) -> int:
        return len(_DTYPES)

    def first(self, num_rows: int) -> ImageColumns:
        """The columns of the first rows."""
        return ImageColumns(lambda name: self[name][:num_rows])


def is_given(reasons: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a column of objects, such as `bad`, is not None."""
    given: NDArray[np.bool_] = reasons != np.array(None, object)
    return given


def image_columns(conn: Connection) -> ImageColumns:
    """The images as columns over image rows, checked against the table's digest.

    `key` and `bad` object (N,), `class_id` int32, `width` and `height` int32 with -1 where unknown,
    `digest` uint8 (N, 16) with `has_digest` bool, `size` and `mtime_ns` int64 with -1 where
    unknown. `free` is True for rows that no image has (see `ImageTable.append`): their key is empty, their
    class -1, and `bad` says so. Keys are unpacked when they are asked for: what is no key is an error then.
    """
    _, total = counts(conn)
    columns = blank_columns(total)
    blank = columns.pop("key")
    packed: dict[int, tuple[bytes, int]] = {}
    for part in verified_batches(conn, image_blocks):
        for row in part:
            found = unpack(row, keys=False)
            first, count = row[0] * BLOCK_ROWS, row[1]
            packed[first] = row[_KEY], count
            for name in columns:
                columns[name][first : first + count] = found[name]
    columns["bad"][columns["free"]] = NO_IMAGE

    def keys() -> NDArray[Any]:
        for first, (one, count) in packed.items():
            rows, block = slice(first, first + count), first // BLOCK_ROWS
            blank[rows] = _keys(one, block, count, checked_keys)
            if ((blank[rows] == "") != columns["free"][rows]).any():
                raise damaged(f"holds what nobody wrote there (block {block})")
        return blank

    return ImageColumns(lambda name: keys() if name == "key" else columns[name])


def block_columns(conn: Connection, block: int) -> Columns | None:
    """Columns of one block's rows, as `unpack` gives them; None where it has no images."""
    row = conn.execute(select(image_blocks).where(image_blocks.c.block == block)).one_or_none()
    return None if row is None else unpack(tuple(row))


def rows_by_key(conn: Connection, keys: Sequence[str]) -> dict[str, int]:
    """Image rows of those keys that the search finds: a damaged search column may hide one, and shows none wrongly."""
    wanted = np.unique(np.array([key_crc(key) for key in keys], np.uint32))
    known = set(keys)
    heads, searched = [], []
    for *head, crcs in conn.execute(select(*HEAD, image_blocks.c.key_crc)):
        block, count, _ = checked_head(head)
        if not isinstance(crcs, bytes) or len(crcs) != 4 * count:
            raise damaged(f"holds what nobody wrote there (block {block})")
        heads.append((block, count))
        searched.append(crcs)
    hits = np.flatnonzero(np.isin(np.frombuffer(b"".join(searched), "<u4"), wanted))
    ends = np.cumsum([count for _, count in heads])
    blocks = [heads[at] for at in np.unique(np.searchsorted(ends, hits, "right")).tolist()]
    found: dict[str, int] = {}
    for block, count in blocks:
        packed = select(image_blocks.c.key).where(image_blocks.c.block == block)
        for at, key in enumerate(_keys(conn.execute(packed).scalar(), block, count, unpack_keys)):
            if key in known:
                found[key] = block * BLOCK_ROWS + at
    return found


def _keys(
    packed: object, block: int, count: int, unpacking: Callable[[bytes, int], list[str]]
) -> list[str]:
    try:
        if isinstance(packed, bytes):
            return unpacking(packed, count)
    except ValueError:
        pass
    raise damaged(f"holds what nobody wrote there (block {block})")
