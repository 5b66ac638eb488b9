"""Frozen stores: `labelstore.json`, which vouches for every file, and reading one out of object storage.

The manifest has the SHA-256 of every file and one root digest that stands for them all: the SHA-256 of the lines
`SHA256  PATH\\n`, sorted by path, as `sha256sum` prints them.

Of a store in object storage catalogue and manifest come into a cache, shards are read by range. A frozen store never
changes, so a cache folder is named by its root digest and never goes stale. The manifest's digests vouch for what is
cached, the catalogue's ledger for every chunk that is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from labelstore.arrays import open_arrays
from labelstore.arrays.checked_files import read_limited
from labelstore.arrays.durable import (
    TEMPORARY_SUFFIX,
    fsync_file,
    make_folders,
    storage_errors,
    write_file,
)
from labelstore.arrays.object_storage import Bucket, BucketFolder, Missing
from labelstore.arrays.sharding import Damage
from labelstore.catalogue import Catalogue
from labelstore.catalogue.engines import sqlite_url
from labelstore.errors import (
    DamagedShard,
    FormatVersionError,
    StorageError,
    StoreNotFound,
)
from labelstore.store.layout import FORMAT_VERSION
from labelstore.store.metadata import check_metadata
from labelstore.store.store import Store
from labelstore.store.untrusted_store import refuse_rows
from labelstore.store.user_cache import default_cache

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


MANIFEST_KEY = "labelstore.json"
CATALOGUE_KEY = "catalogue.db"
ARRAYS = {"arrays.zarr/zarr.json": "zarr", "arrays/arrays.json": "hdf5"}
"""The file that describes the arrays, and the backend that wrote it."""
UPLOAD_AGAIN = "upload the file again from the frozen store"


def open_remote(url: str, *, cache: Path | None = None) -> Store:
    """Open the frozen store at a URL of object storage (s3, gs, az, https) for reading.

    StoreNotFound where there is no bucket or no frozen store in it, StorageError where it cannot be reached or
    read, DamagedShard where an object is not what the manifest says.
    """
    bucket = Bucket(url)
    try:
        data = bucket.read(MANIFEST_KEY, most=MAX_MANIFEST_BYTES)
    except Missing:
        raise StoreNotFound(
            f"{bucket.url}: no frozen store there: check the path; a store is uploaded after `labelstore.freeze`"
        ) from None
    manifest = parse_manifest(data, f"{bucket.url}/{MANIFEST_KEY}")
    described = next((key for key in ARRAYS if key in manifest.files), None)
    if described is None or CATALOGUE_KEY not in manifest.files:
        raise DamagedShard(
            f"{bucket.url}/{MANIFEST_KEY}: names no catalogue or no arrays; {UPLOAD_AGAIN}"
        )
    folder = (cache or default_cache()) / f"{manifest.uuid[:8]}-{manifest.root[:32]}"
    _fetch(bucket, manifest, (CATALOGUE_KEY, described), folder)
    write_once(folder / MANIFEST_KEY, data)
    catalogue = Catalogue.open(
        sqlite_url(folder / CATALOGUE_KEY), readonly=True, frozen_at=bucket.url
    )
    refuse_rows(catalogue, Path(bucket.url))
    arrays = Path(described).parent
    backend = open_arrays(
        folder / arrays, ARRAYS[described], source=BucketFolder(bucket, arrays.as_posix())
    )
    store = Store(folder, catalogue, backend, location=bucket.url)
    check_metadata(catalogue, store.arrays, folder)
    return store


def write_once(path: Path, data: bytes) -> None:
    """Write a file of the cache, unless it is there."""
    if not path.exists():
        write_file(path, data)


def _fetch(bucket: Bucket, manifest: Manifest, keys: Iterable[str], folder: Path) -> None:
    """Bring files into the cache that are not there; each is what the manifest says before it has its name."""
    for key in keys:
        due, path = manifest.files[key], folder / key
        with storage_errors(path):
            there = path.is_file() and path.stat().st_size == due.bytes
        if there and (key != CATALOGUE_KEY or _is_known(path, due)):
            continue
        make_folders(path.parent)
        temporary = path.with_name(
            f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
        )
        try:
            _download(bucket, key, temporary, due)
            with storage_errors(path):
                temporary.chmod(0o444)
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _is_known(path: Path, due: ManifestFile) -> bool:
    # tables are checked against their digests whenever they are read: here only what was cut or swapped is looked for
    return due.bytes > 1 << 26 or file_digest(path) == due


def _download(bucket: Bucket, key: str, path: Path, due: ManifestFile) -> None:
    where, sha256, size = f"{bucket.url}/{key}", hashlib.sha256(), 0
    try:
        with storage_errors(path), path.open("xb") as file:
            for piece in bucket.pieces(key, due.bytes):
                size += len(piece)
                if size > due.bytes:
                    break
                sha256.update(piece)
                file.write(piece)
            file.flush()
            fsync_file(file.fileno())
    except Missing:
        raise DamagedShard(f"{where}: is missing; {UPLOAD_AGAIN}") from None
    if size != due.bytes:
        received = f"more than {due.bytes}" if size > due.bytes else str(size)
        raise DamagedShard(
            f"{where}: has {received} bytes where the manifest says {due.bytes}; {UPLOAD_AGAIN}"
        )
    if sha256.hexdigest() != due.sha256:
        raise DamagedShard(f"{where}: its SHA-256 is not the manifest's; {UPLOAD_AGAIN}")
