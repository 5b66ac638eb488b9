"""`labelstore.json`: the SHA-256 of every file of a frozen store, and one digest that stands for them all.

The root digest is the SHA-256 of the lines `SHA256  PATH\\n`, sorted by path, as `sha256sum` prints them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from labelstore.arrays.checked_files import read_limited
from labelstore.arrays.durable import storage_errors
from labelstore.arrays.sharding import Damage
from labelstore.errors import DamagedShard, FormatVersionError, StorageError
from labelstore.store.layout import FORMAT_VERSION

RESTORE = "restore it from the store that was frozen"
MAX_MANIFEST_BYTES = 1 << 30
"""Largest manifest that is read: about seven million files."""

_HASH_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class ManifestFile:
    """One file of a frozen store."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a frozen store holds."""

    uuid: str
    format_version: int
    files: Mapping[str, ManifestFile]
    """By path relative to the store, POSIX."""

    @property
    def root(self) -> str:
        """The digest that stands for all files."""
        lines = (f"{self.files[path].sha256}  {path}\n" for path in sorted(self.files))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def to_bytes(self) -> bytes:
        """The file's bytes; equal stores give equal bytes."""
        record = {
            "format": "labelstore",
            "format_version": self.format_version,
            "uuid": self.uuid,
            "root": self.root,
            "files": {path: asdict(self.files[path]) for path in sorted(self.files)},
        }
        return (json.dumps(record, indent=1) + "\n").encode()


def read_manifest(path: Path) -> Manifest:
    """The manifest of a frozen store. DamagedShard unless it is what `freeze` wrote, StorageError for no file."""
    try:
        data = read_limited(path, MAX_MANIFEST_BYTES)
    except Damage as damage:
        raise DamagedShard(f"{path}: {damage}; {RESTORE}") from None
    if data is None:
        raise StorageError(f"{path}: is missing, or no file")
    return parse_manifest(data, str(path))


def parse_manifest(data: bytes, path: str) -> Manifest:
    """The manifest in a file's bytes; `path` is for messages."""
    try:
        record: dict[str, Any] = json.loads(data)
        version = record["format_version"]
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise FormatVersionError(
                f"{path}: format {version}, this version reads up to {FORMAT_VERSION}: update labelstore"
            )
        manifest = Manifest(
            uuid=record["uuid"],
            format_version=version,
            files={
                _safe(key): ManifestFile(bytes=int(file["bytes"]), sha256=str(file["sha256"]))
                for key, file in record["files"].items()
            },
        )
        same = manifest.to_bytes() == data
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        same = False
    if not same:
        raise DamagedShard(f"{path}: is not a manifest that `labelstore.freeze` wrote; {RESTORE}")
    return manifest


def file_digest(path: Path) -> ManifestFile:
    """Size and SHA-256 of a file."""
    sha256, size = hashlib.sha256(), 0
    with storage_errors(path), path.open("rb") as file:
        while data := file.read(_HASH_BYTES):
            sha256.update(data)
            size += len(data)
    return ManifestFile(bytes=size, sha256=sha256.hexdigest())


def _safe(key: str) -> str:
    if (
        key.startswith("/")
        or "\\" in key
        or any(part in ("", ".", "..") for part in key.split("/"))
    ):
        raise ValueError(key)
    return key
