"""Sharing frozen stores: push a store with a card, pull a pinned commit and believe no file of it unchecked.

A store is one commit. What is pulled has its name only when every file is what the manifest says, and the manifest
is what was asked for.
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from labelstore.arrays.checked_files import read_limited
from labelstore.arrays.durable import (
    TEMPORARY_SUFFIX,
    check_new_place,
    fsync_folder,
    fsync_path,
    make_folders,
    storage_errors,
    write_file,
)
from labelstore.arrays.sharding import Damage
from labelstore.care.freezing import READ_ONLY
from labelstore.commit.lease_keeper import Progress
from labelstore.errors import (
    ConflictError,
    DamagedShard,
    LabelStoreError,
    RejectedInput,
    StoreNotFound,
    UsageError,
)
from labelstore.sharing.card import card
from labelstore.sharing.hub_requests import parse_json
from labelstore.sharing.remotes import (
    DEFAULT_REVISION,
    MAX_FILES,
    FolderRemote,
    Remote,
    check_revision,
    open_remote,
)
from labelstore.store import Store, open_store
from labelstore.store.frozen_store import (
    Manifest,
    file_digest,
    parse_manifest,
    read_manifest,
)
from labelstore.store.opening import ARRAY_FOLDERS, CATALOGUE_FILE, MANIFEST_FILE, refuse_remote

CARD_FILE = "README.md"
BESIDE = frozenset({CARD_FILE, ".gitattributes", "LICENSE", "LICENSE.md"})
"""Files of a repository that are not the store's; they are never pulled."""
MAX_FILES_PER_FOLDER = 10_000
MAX_FILE_BYTES = 20 * 10**9
MAX_LICENCE = 100
MAX_SHARED_MANIFEST_BYTES = 48 << 20
"""Of a manifest that is pulled: `MAX_FILES` files take less than half of it."""


@dataclass(frozen=True, kw_only=True)
class Shared:
    """A store that was pushed or pulled, or would be."""

    repo: str
    where: str
    revision: str
    """As asked for."""
    commit: str | None
    """What the revision stands for now; None where a push has only been tried."""
    uuid: str
    root: str
    """Digest over the digests of all files."""
    files: int
    bytes: int
    already: bool = False
    """True where this very store was there and nothing had to be done."""

    def to_record(self) -> dict[str, Any]:
        """JSON values."""
        return dict(vars(self))


def push(
    store: Store,
    repo: str,
    *,
    revision: str = DEFAULT_REVISION,
    private: bool = False,
    licence: str | None = None,
    dry_run: bool = False,
    remote: Remote | None = None,
    progress: Progress = lambda done, total: None,
) -> Shared:
    """Upload a frozen store and its card as one commit of a data set repository.

    `repo` is OWNER/NAME on the Hub or a folder (`remotes.open_remote`). UsageError for a store that is not frozen
    or is over the Hub's limits, DamagedShard for a file that is not the manifest's, ConflictError for
    a repository with something else in it. An earlier version of the same store is replaced.
    """
    check_revision(revision)
    _check_licence(licence)
    remote = open_remote(repo) if remote is None else remote
    refuse_remote(store.location, "it is pushed from a disk")
    path = store.path / MANIFEST_FILE
    if not path.exists():
        raise UsageError(
            f"{store.path} is not frozen: run `labelstore.freeze(labelstore.open({str(store.path)!r}))` first, "
            "only what never changes is shared"
        )
    if private and isinstance(remote, FolderRemote):
        raise UsageError(f"`private` is for the Hub: who may read {remote.where} its folder says")
    if isinstance(remote, FolderRemote):
        remote.check_place()
    manifest = read_manifest(path)
    _check_names(manifest, str(path))
    check_limits(manifest)
    for done, (key, due) in enumerate(manifest.files.items(), 1):
        file = store.path / key
        if file.is_symlink() or not file.is_file() or file_digest(file) != due:
            raise DamagedShard(
                f"{file}: is not what the manifest says; run `labelstore.verify({str(store.path)!r})`"
            )
        progress(done, len(manifest.files))
    current = remote.resolve(revision)
    there = _held(remote, current or remote.resolve(DEFAULT_REVISION), manifest)
    result = _shared(remote, repo, revision, current, manifest)
    if current is not None and _is_there(remote, current, manifest, there):
        return _shared(remote, repo, revision, current, manifest, already=True)
    text = card(store, manifest, repo=repo, licence=licence)
    if dry_run:
        return result
    remote.prepare(revision, private=private)
    parent = remote.resolve(revision)
    there = _held(remote, parent, manifest)
    add: dict[str, Path | bytes] = {key: store.path / key for key in manifest.files}
    add |= {MANIFEST_FILE: manifest.to_bytes(), CARD_FILE: text.encode()}
    commit = remote.commit(
        revision,
        add,
        sorted(set(there) - set(add) - BESIDE),
        message=f"labelstore {manifest.root[:16]}",
        parent=parent,
    )
    _check_listing(remote.files(commit), manifest, f"{remote.where} at {commit}")
    return _shared(remote, repo, revision, commit, manifest)


def pull(
    repo: str,
    target: str | Path,
    *,
    revision: str = DEFAULT_REVISION,
    expect_root: str | None = None,
    dry_run: bool = False,
    remote: Remote | None = None,
    progress: Progress = lambda done, total: None,
) -> Shared:
    """Download the frozen store at a revision into the new folder `target`.

    The revision is resolved to a commit once. StoreNotFound where there is no such repository, revision or store;
    DamagedShard for any file that is missing, too many or not what the manifest says, or a root digest other than
    `expect_root`; ConflictError if there is something at `target`. Nothing is left under that name then.
    """
    check_revision(revision)
    if expect_root is not None and re.fullmatch(r"[0-9a-fA-F]{64}", expect_root) is None:
        raise UsageError(
            f"`expect_root={expect_root!r}`: give the 64 hex digits that `labelstore.push` gave as root"
        )
    target = Path(target)
    refuse_remote(target, "a store is pulled to a disk")
    if target == Path():
        raise UsageError("the new store's path is empty: name the folder that is to be made")
    if target.exists() or target.is_symlink():
        raise ConflictError(f"{target} exists already: give another path, or remove it first")
    check_new_place(target)
    remote = open_remote(repo) if remote is None else remote
    commit = remote.resolve(revision)
    if commit is None:
        raise StoreNotFound(f"{remote.where}: no revision {revision}, or no such repository")
    where = f"{remote.where} at {commit}"
    listed = remote.files(commit)
    # a dry run writes nothing beside the target either
    folder = None if dry_run else target.absolute().parent
    manifest = _fetch_manifest(remote, commit, listed, folder)
    if expect_root is not None and expect_root.lower() != manifest.root:
        raise DamagedShard(
            f"{where}: root digest {manifest.root}, expected {expect_root}: this is another version of the store"
        )
    _check_listing(listed, manifest, where)
    result = _shared(remote, repo, revision, commit, manifest)
    if dry_run:
        return result
    make_folders(target.absolute().parent)
    building = target.with_name(f".{target.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        make_folders(building)
        for done, (key, due) in enumerate(manifest.files.items(), 1):
            path = building / key
            with storage_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            remote.download(commit, key, due.bytes, path)
            if path.is_symlink() or not path.is_file() or file_digest(path) != due:
                raise DamagedShard(f"{where}: {key} is not what the manifest says; pull again")
            _settle(path)
            progress(done, len(manifest.files))
        write_file(building / MANIFEST_FILE, manifest.to_bytes())
        _settle(building / MANIFEST_FILE)
        for parent in {building / PurePosixPath(key).parent for key in manifest.files}:
            fsync_folder(parent)
        _check_opens(building, manifest, where)
        with storage_errors(target):
            if target.exists() or target.is_symlink():
                raise ConflictError(f"{target} was made meanwhile: give another path")
            building.rename(target)
        fsync_folder(target.absolute().parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return result


def check_limits(manifest: Manifest) -> None:
    """UsageError for a store that the Hub would not take."""
    files = [*manifest.files, MANIFEST_FILE, CARD_FILE]
    fewer = "make fewer, larger shards: `labelstore.create(plan=PlanOptions(images_per_shard=N))`"
    if len(files) > MAX_FILES:
        raise UsageError(f"{len(files):,} files, the Hub takes {MAX_FILES:,} at most: {fewer}")
    for folder, entries in _entries(files).items():
        if entries > MAX_FILES_PER_FOLDER:
            raise UsageError(
                f"{folder} has {entries:,} entries, the Hub takes {MAX_FILES_PER_FOLDER:,} in a folder: {fewer}"
            )
    for key, file in manifest.files.items():
        if file.bytes > MAX_FILE_BYTES:
            raise UsageError(
                f"{key} has {file.bytes / 1e9:,.1f} GB, the Hub takes {MAX_FILE_BYTES / 1e9:.0f} GB in a file: make "
                "smaller shards: `labelstore.create(plan=PlanOptions(images_per_shard=N))`"
            )


def _entries(files: Iterable[str]) -> Counter[str]:
    """Folder -> files and folders directly in it."""
    inside: Counter[str] = Counter()
    seen: set[str] = set()
    for file in files:
        node = file
        while node and node not in seen:
            seen.add(node)
            node = node.rpartition("/")[0]
            inside[node or "the store"] += 1
    return inside


def _check_licence(licence: str | None) -> None:
    if licence is not None and not (
        licence.strip() and licence.isprintable() and len(licence) <= MAX_LICENCE
    ):
        raise UsageError(
            f"`licence={licence!r}`: give a name such as cc-by-4.0, one line of at most {MAX_LICENCE} characters"
        )


def _check_names(manifest: Manifest, where: str) -> None:
    """A manifest names a catalogue and the files of one array folder; nothing else is a store's."""
    folders = {key.partition("/")[0] for key in manifest.files if key != CATALOGUE_FILE}
    inside = all(
        "/" in key and key.isprintable() for key in manifest.files if key != CATALOGUE_FILE
    )
    if (
        not inside
        or CATALOGUE_FILE not in manifest.files
        or len(folders) != 1
        or not folders <= set(ARRAY_FOLDERS.values())
    ):
        raise RejectedInput(
            f"{where}: names other files than a catalogue and arrays, so it is no store's manifest"
        )


def _fetch_manifest(
    remote: Remote, commit: str, listed: Mapping[str, int], folder: Path | None
) -> Manifest:
    """The manifest of a commit, by way of a file in `folder` or the temporary folder."""
    import tempfile

    where = f"{remote.where} at {commit}"
    if MANIFEST_FILE not in listed:
        raise StoreNotFound(f"{where}: holds no frozen store (no {MANIFEST_FILE})")
    if listed[MANIFEST_FILE] > MAX_SHARED_MANIFEST_BYTES:
        raise RejectedInput(f"{where}: {MANIFEST_FILE} has {listed[MANIFEST_FILE]:,} bytes")
    if folder is not None:
        make_folders(folder)
    with storage_errors(folder or Path(tempfile.gettempdir())):
        scratch = Path(tempfile.mkdtemp(prefix=".labelstore.", suffix=TEMPORARY_SUFFIX, dir=folder))
    try:
        path = scratch / MANIFEST_FILE
        remote.download(commit, MANIFEST_FILE, listed[MANIFEST_FILE], path)
        try:
            data = read_limited(path, MAX_SHARED_MANIFEST_BYTES)
            parse_json(data or b"")
        except (Damage, ValueError):
            data = None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if data is None:
        raise DamagedShard(f"{where}: {MANIFEST_FILE} is no manifest; push the store again")
    manifest = parse_manifest(data, f"{where}: {MANIFEST_FILE}")
    _check_names(manifest, f"{where}: {MANIFEST_FILE}")
    return manifest


def _check_listing(listed: Mapping[str, int], manifest: Manifest, where: str) -> None:
    for key, due in manifest.files.items():
        if key not in listed:
            raise DamagedShard(f"{where}: {key} is missing; push the store again")
        if listed[key] != due.bytes:
            raise DamagedShard(
                f"{where}: {key} has {listed[key]:,} bytes where the manifest says {due.bytes:,}; push the store again"
            )
    extra = sorted(set(listed) - set(manifest.files) - BESIDE - {MANIFEST_FILE})
    if extra:
        raise DamagedShard(
            f"{where}: {extra[0]!r} is not named by the manifest ({len(extra):,} such files); push the store again"
        )


def _held(remote: Remote, commit: str | None, manifest: Manifest) -> dict[str, int]:
    """The files of a commit that a push may replace; ConflictError for another store, or what is none."""
    if commit is None:
        return {}
    listed = remote.files(commit)
    if not set(listed) - BESIDE:
        return listed
    other = f"{remote.where} holds something else: give this store a repository of its own"
    try:
        found = _fetch_manifest(remote, commit, listed, None)
    except (StoreNotFound, DamagedShard, RejectedInput):
        raise ConflictError(other) from None
    if found.uuid != manifest.uuid:
        raise ConflictError(f"{other} (it holds store {found.uuid}, this is {manifest.uuid})")
    return listed


def _is_there(remote: Remote, commit: str, manifest: Manifest, listed: Mapping[str, int]) -> bool:
    if MANIFEST_FILE not in listed:
        return False
    try:
        _check_listing(listed, manifest, remote.where)
        return _fetch_manifest(remote, commit, listed, None).root == manifest.root
    except DamagedShard:
        return False


def _settle(path: Path) -> None:
    """On disk, and read-only as every file of a frozen store."""
    with storage_errors(path):
        path.chmod(READ_ONLY)
        fsync_path(path)


def _check_opens(path: Path, manifest: Manifest, where: str) -> None:
    """A manifest vouches for bytes, not for what they say: the catalogue's rows are looked at as well."""
    try:
        with open_store(path, readonly=True) as store:
            uuid = store.uuid
    except LabelStoreError as error:
        # the folder will be gone when this is read
        raise type(error)(str(error).replace(str(path), where)) from None
    if uuid != manifest.uuid:
        raise DamagedShard(
            f"{where}: the manifest is of store {manifest.uuid}, the catalogue of {uuid}"
        )


def _shared(
    remote: Remote,
    repo: str,
    revision: str,
    commit: str | None,
    manifest: Manifest,
    *,
    already: bool = False,
) -> Shared:
    return Shared(
        repo=repo,
        where=remote.where,
        revision=revision,
        commit=commit,
        uuid=manifest.uuid,
        root=manifest.root,
        files=len(manifest.files),
        bytes=sum(file.bytes for file in manifest.files.values()),
        already=already,
    )
