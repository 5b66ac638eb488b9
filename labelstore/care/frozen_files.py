"""Is a frozen store still what its manifest says?"""

from __future__ import annotations

from labelstore.care.verify_report import Problem
from labelstore.errors import DamagedShard
from labelstore.store import Store
from labelstore.store.frozen_store import RESTORE, ManifestFile, file_digest, read_manifest
from labelstore.store.opening import MANIFEST_FILE


def manifest_problems(store: Store, *, hashes: bool) -> list[Problem]:
    """Where a frozen store differs from its manifest.

    Shard files are compared with the ledger elsewhere; here ledger and manifest must agree.
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
            for group in store.catalogue.ledger.counts()
            for row in store.catalogue.ledger.shards(group)
            for file in row.files
        }
    except DamagedShard:
        return {}  # reported as the catalogue's damage
