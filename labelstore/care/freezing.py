"""Freezing: a store that never changes again, with a manifest by which every copy of it can be checked.

What is frozen holds what the catalogue names and nothing else: a compact copy of the catalogue, the
metadata files, the shards. Every file is read once and compared with the ledger.
"""

from __future__ import annotations

import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from labelstore.arrays.durable import (
    TEMPORARY_SUFFIX,
    check_new_place,
    fsync_file,
    fsync_folder,
    fsync_path,
    make_folders,
    publish,
    storage_errors,
    write_file,
)
from labelstore.catalogue import FORMAT_VERSION, Catalogue
from labelstore.catalogue.connection import write_locked
from labelstore.catalogue.engines import sqlite_url
from labelstore.commit.lease_keeper import Progress
from labelstore.errors import ConflictError, DamagedShard, IncompleteError
from labelstore.store import Store
from labelstore.store.frozen_store import Manifest, ManifestFile, file_digest, read_manifest
from labelstore.store.layout import Layout, label_layout
from labelstore.store.opening import (
    CATALOGUE_FILE,
    CATALOGUE_URL_FILE,
    MANIFEST_FILE,
    refuse_remote,
)

READ_ONLY = 0o444


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """A frozen store."""

    path: Path
    root: str
    """Digest over the digests of all files: equal for equal stores."""
    files: int
    bytes: int
    already: bool = False
    """True where it was frozen before and nothing had to be done."""


def freeze(
    store: Store,
    target: str | Path | None = None,
    *,
    allow_incomplete: bool = False,
    progress: Progress | None = None,
) -> Frozen:
    """Freeze a store where it is, or a copy of it at `target`.

    ConflictError while somebody holds a lease, or if there is something at `target`; IncompleteError
    for a label set or mask that is not complete, unless allowed; DamagedShard for a file that is not what the
    ledger says. The frozen store appears when it is whole.
    """
    refuse_remote(store.location, "it is frozen")
    manifest = store.path / MANIFEST_FILE
    if target is None and manifest.exists():
        frozen_before = read_manifest(manifest)
        return _frozen(store.path, frozen_before, already=True)
    store.finish_metadata()  # a frozen store cannot be written
    _check(store, allow_incomplete)
    job = _Freezing(store, progress or (lambda done, total: None))
    return job.in_place() if target is None else job.copy(Path(target))


def what_freezes(
    store: Store,
    target: str | Path | None = None,
    *,
    allow_incomplete: bool = False,
    progress: Progress | None = None,
) -> Frozen:
    """Read every file and return what `freeze` would write; refuses what `freeze` refuses. The root is empty."""
    refuse_remote(store.location, "it is frozen")
    if target is not None:
        check_target(Path(target))
    elif (store.path / MANIFEST_FILE).exists():
        return _frozen(store.path, read_manifest(store.path / MANIFEST_FILE), already=True)
    else:
        store.catalogue.check_writable()
    _check(store, allow_incomplete)
    files = _Freezing(store, progress or (lambda done, total: None)).array_files(None)
    return Frozen(
        path=store.path if target is None else Path(target),
        root="",
        files=len(files) + 1,
        bytes=sum(file.bytes for file in files.values()),
    )


def check_target(target: Path) -> None:
    """ConflictError if there is something at `target`, UsageError if it is inside a store, this one or another."""
    if target.exists() or target.is_symlink():
        raise ConflictError(f"{target} exists already: give another path, or remove it first")
    check_new_place(target)


def _check(store: Store, allow_incomplete: bool) -> None:
    _refuse_leases(store)
    if allow_incomplete:
        return
    rows = store.num_rows
    kinds = [
        (
            f"labels/{row.name}",
            label_layout(row, store.plan(row.plan), rows),
            "labelstore.generate",
        )
        for row in store.catalogue.label_sets.all()
    ]
    kinds += [
        (f"masks/{row.name}", Layout.of(store.plan(row.plan), rows), "labelstore.calibrate")
        for row in store.catalogue.masks.all()
    ]
    for group, layout, command in kinds:
        due = layout.num_blocks * layout.num_crop_shards
        there = sum(len(shards) for shards in store.catalogue.ledger.committed(group).values())
        if there < due:
            raise IncompleteError(
                f"{group} has {there} of {due} shards: finish it with `{command}`, or give `allow_incomplete`"
            )


def _refuse_leases(store: Store) -> None:
    for lease in store.catalogue.leases.live():
        raise ConflictError(
            f"{store.path}: {lease.owner} is writing image block {lease.block} of {lease.group}: "
            "freeze the store when it is done"
        )


class _Freezing:
    def __init__(self, store: Store, progress: Progress) -> None:
        self.store = store
        self.progress = progress
        self.root = store.arrays.root.relative_to(store.path)

    def in_place(self) -> Frozen:
        path = self.store.path
        temporary = (
            path / f".{CATALOGUE_FILE}.{os.getpid()}-{uuid.uuid4().hex[:8]}{TEMPORARY_SUFFIX}"
        )
        try:
            files = self.array_files(None)
            # no process commits until the manifest is there; from then on every writing transaction is refused
            with self.store.catalogue.transaction():
                _refuse_leases(self.store)
                self._refuse_changes()
                files[CATALOGUE_FILE] = self._copy_catalogue(temporary)
                manifest = self._manifest(files)
                # the store opens the copy from here on, whose file is not locked yet
                with write_locked(temporary):
                    publish(temporary, path / CATALOGUE_FILE)
                    fsync_folder(path)
                    write_file(path / MANIFEST_FILE, manifest.to_bytes())
        finally:
            temporary.unlink(missing_ok=True)
        # a catalogue on a server stays there; from here on the copy in the folder is the store's
        with storage_errors(path / CATALOGUE_URL_FILE):
            (path / CATALOGUE_URL_FILE).unlink(missing_ok=True)
        _make_read_only(path, files)
        return _frozen(path, manifest)

    def copy(self, target: Path) -> Frozen:
        check_target(target)
        building = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}{TEMPORARY_SUFFIX}")
        try:
            make_folders(building / self.root)
            files = self.array_files(building)
            # the catalogue last: it must not know of shards that were committed after the files were listed
            files[CATALOGUE_FILE] = self._copy_catalogue(building / CATALOGUE_FILE)
            manifest = self._manifest(files)
            self._refuse_changes()
            write_file(building / MANIFEST_FILE, manifest.to_bytes())
            _make_read_only(building, files)
            with storage_errors(target):
                building.rename(target)
            fsync_folder(target.parent)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return _frozen(target, manifest)

    def _manifest(self, files: dict[str, ManifestFile]) -> Manifest:
        # the copy of an older store's catalogue is one of this version
        uuid = self.store.catalogue.uuid
        return Manifest(uuid=uuid, format_version=FORMAT_VERSION, files=files)

    def _refuse_changes(self) -> None:
        if self._listed() != self.listed:
            raise ConflictError(
                f"{self.store.path} was written to meanwhile: freeze it when its writers are done"
            )

    def _listed(self) -> dict[str, frozenset[str]]:
        """Acceptable digests of every file in the array folder that the catalogue names."""
        catalogue = self.store.catalogue
        listed = {key: due for key, due in catalogue.metadata.digests().items() if due != {""}}
        for group in catalogue.ledger.counts():
            for row in catalogue.ledger.shards(group):
                listed |= {file.key: frozenset({file.sha256}) for file in row.files}
        return listed

    def array_files(self, target: Path | None) -> dict[str, ManifestFile]:
        """Compare every file in the array folder with the catalogue; copy it if there is a target."""
        self.listed = self._listed()
        files = {}
        self.progress(0, len(self.listed))
        for done, (key, due) in enumerate(self.listed.items(), 1):
            relative = self.root / key
            source = self.store.path / relative
            if source.is_symlink() or not source.is_file():
                self._refuse_changes()
                raise DamagedShard(
                    f"{source}: is missing; run `labelstore.verify({str(self.store.path)!r})`"
                )
            if target is None:
                digest = file_digest(source)
            else:
                make_folders((target / relative).parent)
                _copy(source, target / relative)
                digest = file_digest(target / relative)
            if digest.sha256 not in due:
                self._refuse_changes()
                raise DamagedShard(
                    f"{source}: its SHA-256 is not the catalogue's; run `labelstore.verify({str(self.store.path)!r})`"
                )
            files[relative.as_posix()] = digest
            self.progress(done, len(self.listed))
        if target is not None:
            for folder in {(target / path).parent for path in files}:
                fsync_folder(folder)
        return files

    def _copy_catalogue(self, path: Path) -> ManifestFile:
        with storage_errors(path):
            self.store.catalogue.copy_to(path)
            fsync_path(path)
        with Catalogue.open(sqlite_url(path), readonly=True) as copied:
            copied.verify_digests()
        return file_digest(path)


def _copy(source: Path, target: Path) -> None:
    with storage_errors(target), source.open("rb") as old, target.open("xb") as new:
        shutil.copyfileobj(old, new, 1 << 22)
        new.flush()
        fsync_file(new.fileno())


def _make_read_only(path: Path, files: dict[str, ManifestFile]) -> None:
    for name in (*files, MANIFEST_FILE):
        with storage_errors(path / name):
            (path / name).chmod(READ_ONLY)


def _frozen(path: Path, manifest: Manifest, *, already: bool = False) -> Frozen:
    return Frozen(
        path=path,
        root=manifest.root,
        files=len(manifest.files),
        bytes=sum(file.bytes for file in manifest.files.values()),
        already=already,
    )
