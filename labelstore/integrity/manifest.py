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

from labelstore.arrays.durable import storage_errors
from labelstore.errors import DamagedShard, FormatVersionError
from labelstore.integrity.report import Problem
from labelstore.schema import FORMAT_VERSION
from labelstore.store import Store
from labelstore.store.opening import MANIFEST_FILE

RESTORE = "restore it from the store that was frozen"
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
    """The manifest of a frozen store. DamagedShard unless it is what `freeze` wrote."""
    with storage_errors(path):
        data = path.read_bytes()
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
        raise DamagedShard(f"{path}: is not a manifest that `labelstore freeze` wrote; {RESTORE}")
    return manifest


def file_digest(path: Path) -> ManifestFile:
    """Size and SHA-256 of a file."""
    sha256, size = hashlib.sha256(), 0
    with storage_errors(path), path.open("rb") as file:
        while data := file.read(_HASH_BYTES):
            sha256.update(data)
            size += len(data)
    return ManifestFile(bytes=size, sha256=sha256.hexdigest())


def manifest_problems(store: Store, *, hashes: bool) -> list[Problem]:
    """Where a frozen store differs from its manifest.

    Shard files are held against the ledger elsewhere; here it is enough that ledger and manifest agree.
    """
    path = store.path / MANIFEST_FILE
    try:
        manifest = read_manifest(path)
    except DamagedShard as error:
        what = str(error).removeprefix(f"{path}: ").removesuffix(f"; {RESTORE}")
        return [Problem(path=str(path), what=what, command=RESTORE)]
    problems = []
    if manifest.uuid != store.uuid:
        what = (
            f"is the manifest of another store ({manifest.uuid}, the catalogue is of {store.uuid})"
        )
        problems.append(Problem(path=str(path), what=what, command=RESTORE))
    ledger = _ledger_files(store)
    for key, due in manifest.files.items():
        file = store.path / key
        recorded = ledger.pop(key, None)
        if recorded is not None:
            found = None if recorded == due else "the manifest and the ledger do not agree about it"
        elif file.is_symlink() or not file.is_file():
            found = "is missing"
        elif file.stat().st_size != due.bytes:
            found = f"has {file.stat().st_size} bytes where the manifest says {due.bytes}"
        elif hashes and file_digest(file) != due:
            found = "its SHA-256 is not the manifest's"
        else:
            found = None
        if found is not None:
            problems.append(Problem(path=str(file), what=found, command=RESTORE))
    problems += [
        Problem(path=str(store.path / key), what="the manifest does not name it", command=RESTORE)
        for key in ledger
    ]
    return problems


def _ledger_files(store: Store) -> dict[str, ManifestFile]:
    root = store.arrays.root.relative_to(store.path).as_posix()
    try:
        return {
            f"{root}/{file.key}": ManifestFile(bytes=file.size, sha256=file.sha256)
            for group in store.catalogue.counts()
            for row in store.catalogue.shards(group)
            for file in row.files
        }
    except DamagedShard:
        return {}  # reported as the catalogue's damage


def _safe(key: str) -> str:
    if (
        key.startswith("/")
        or "\\" in key
        or any(part in ("", ".", "..") for part in key.split("/"))
    ):
        raise ValueError(key)
    return key
