"""Files of `torch.save`, read without torch: the zip of today, and the row of pickles of torch before 1.6.

    zip       NAME/data.pkl, stored, and NAME/data/KEY with the numbers of each storage; CRC-32 of all that is read
    legacy    pickles of a magic number, protocol 1001, system facts, the value, the storages' keys; then each
              storage as its number of elements (int64) and its numbers

Values are plain data; see `inert_pickle`.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from labelstore.untrusted.inert_pickle import run_pickle
from labelstore.untrusted.inert_values import Storage, Value, storage_of
from labelstore.untrusted.refusal import MAX_FILE_BYTES, Refused, read_bytes
from labelstore.untrusted.stored_zip import ZIP_MAGIC, ZipEntries

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001


def load_torch(path: Path, most: int = MAX_FILE_BYTES) -> Value:
    """Read a file of `torch.save` as plain data and `InertArray`. Refused for anything else."""
    return parse_torch(read_bytes(path, most))


def parse_torch(data: bytes) -> Value:
    """Read the bytes of a `torch.save` file; Refused with the reason for anything that is not plain data."""
    if data.startswith(ZIP_MAGIC):
        return _parse_zip(data)
    if data[:1] == b"\x80":
        return _parse_legacy(data)
    if data[257:262] == b"ustar":
        raise Refused("is a tar archive; label files with that ending are zip files of torch.save")
    raise Refused("is no file of torch.save")


def _parse_zip(data: bytes) -> Value:
    entries = ZipEntries(data)
    pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise Refused(
            f"is a zip with {len(pickles)} entries data.pkl; files of torch.save have one"
        )
    folder = pickles[0].removesuffix("data.pkl")
    order = f"{folder}byteorder"
    if order in entries and bytes(entries.read(order)) != b"little":
        raise Refused("was written on a big-endian machine")
    known: dict[str, Storage] = {}

    def stores(persistent: tuple[Any, ...]) -> Storage:
        key, storage = storage_of(persistent)
        if key in known:
            return _same(known[key], storage)
        name = f"{folder}data/{key}"
        if name not in entries:
            raise Refused("has a tensor without its storage")
        if entries.size(name) != storage.num_bytes:
            raise Refused(
                f"declares a storage of {storage.num_bytes} bytes and gives {entries.size(name)}"
            )
        storage.data = entries.read(name)
        known[key] = storage
        return storage

    pickle = entries.read(pickles[0])
    value, end = run_pickle(bytes(pickle), 0, stores)
    if end != len(pickle):
        raise Refused("has bytes behind its pickle")
    return value


def _parse_legacy(data: bytes) -> Value:
    known: dict[str, Storage] = {}

    def stores(persistent: tuple[Any, ...]) -> Storage:
        key, storage = storage_of(persistent)
        return _same(known[key], storage) if key in known else known.setdefault(key, storage)

    magic, at = run_pickle(data)
    if magic != MAGIC:
        raise Refused("is a plain pickle, not a file of torch.save")
    protocol, at = run_pickle(data, at)
    if protocol != PROTOCOL:
        raise Refused("is of an unknown version of torch.save")
    system, at = run_pickle(data, at)
    if not isinstance(system, dict) or system.get("little_endian", True) is not True:
        raise Refused("was written on a big-endian machine")
    value, at = run_pickle(data, at, stores)
    keys, at = run_pickle(data, at)
    if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise Refused("lists no storages")
    if sorted(keys) != sorted(known):
        raise Refused("lists other storages than it uses")
    whole = memoryview(data)
    for key in keys:
        if len(data) - at < 8:
            raise Refused("ends before its numbers")
        (numel,) = struct.unpack_from("<q", data, at)
        at += 8
        storage = known[key]
        if numel != storage.numel or storage.num_bytes > len(data) - at:
            raise Refused(f"declares a storage of {storage.numel} numbers and gives less or more")
        storage.data = whole[at : at + storage.num_bytes]
        at += storage.num_bytes
    if at != len(data):
        raise Refused("has bytes behind its numbers")
    return value


def _same(known: Storage, storage: Storage) -> Storage:
    if (known.dtype, known.numel) != (storage.dtype, storage.numel):
        raise Refused("describes a storage in two ways")
    return known
