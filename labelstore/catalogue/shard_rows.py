"""One ledger row: a committed shard as column values, its list of files packed."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence

from labelstore.catalogue.digests import Row
from labelstore.catalogue.record_columns import check_types, json_text
from labelstore.catalogue.records import ShardRow
from labelstore.catalogue.tables import shards
from labelstore.errors import DamagedShard
from labelstore.shard_files import ShardFile, check_file_key

MAX_FILES_BYTES = 16 << 20
"""JSON of one row's files: far more than any shard has, and a cap on what a wicked row inflates to."""
MAX_CHUNKS = 1 << 16
"""Most entries of one array in one shard; ours have some twenty. Every reader of the ledger looks at each."""


def pack_files(files: Sequence[ShardFile]) -> bytes:
    """Files of a shard as zlib-compressed JSON: [[key, size, sha256, {array path: [crc32c or null, ...]}], ...]."""
    plain = [
        [
            file.key,
            int(file.size),
            file.sha256,
            {path: _ints(crcs) for path, crcs in file.chunks.items()},
        ]
        for file in files
    ]
    return zlib.compress(json_text(plain).encode(), 9)


def unpack_files(packed: bytes) -> tuple[ShardFile, ...]:
    """Inverse of `pack_files`; DamagedShard for bytes that it did not write."""
    try:
        inflate = zlib.decompressobj()
        text = inflate.decompress(packed, MAX_FILES_BYTES)
        if not inflate.eof:
            raise ValueError(f"more than {MAX_FILES_BYTES} bytes")
        plain = json.loads(text)
        if not isinstance(plain, list):
            raise TypeError("no list of files")
        return tuple(
            ShardFile(
                key=check_file_key(key),
                size=int(size),
                sha256=str(sha256),
                chunks={str(path): tuple(_ints(crcs)) for path, crcs in chunks.items()},
            )
            for key, size, sha256, chunks in plain
        )
    except (zlib.error, ValueError, TypeError, AttributeError, RecursionError):
        raise DamagedShard(
            "catalogue table shards: a row's files are damaged: restore the catalogue from a copy"
        ) from None


def to_columns(row: ShardRow) -> dict[str, object]:
    """Column values of a ledger row."""
    return {
        "group_name": row.group,
        "block": row.block,
        "crop_shard": row.crop_shard,
        "num_images": row.num_images,
        "bytes": sum(file.size for file in row.files),
        "fence": row.fence,
        "seconds": row.seconds,
        "device": row.device,
        "committed": row.committed,
        "files": pack_files(row.files),
    }


def from_columns(row: Row) -> ShardRow:
    """The ledger row of a table row in column order."""
    check_types(shards, row)
    group, block, crop_shard, num_images, _, fence, seconds, device, committed, files = row
    return ShardRow(
        group=group,
        block=block,
        crop_shard=crop_shard,
        files=unpack_files(files),
        num_images=num_images,
        fence=fence,
        seconds=seconds,
        device=device,
        committed=committed,
    )


def _ints(crcs: Sequence[int | None]) -> list[int | None]:
    if len(crcs) > MAX_CHUNKS:
        raise ValueError(f"more than {MAX_CHUNKS} chunks")
    return [None if crc is None else int(crc) for crc in crcs]
