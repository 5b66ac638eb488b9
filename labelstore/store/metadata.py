"""Changing the arrays' metadata files in three steps, so that a kill in between can be finished.

They carry no checksum of their own: the catalogue has their digests, and whoever opens a store compares.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from labelstore.arrays.base import ArrayBackend, ArraySpec
from labelstore.arrays.durable import StagedFiles, storage_errors
from labelstore.catalogue import Catalogue
from labelstore.errors import ConflictError, DamagedShard, RejectedInput, StorageError

ATTEMPTS = 10
LOOKS = 3
"""How often a file that does not match is looked at again: another worker may be replacing it."""


def replace_metadata(
    catalogue: Catalogue,
    arrays: ArrayBackend,
    specs: Sequence[ArraySpec],
    attributes: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write the metadata of all arrays of a store: intent row, files, intent dropped with the new digests.

    Metadata is a function of the catalogue, so two workers that add arrays at once both end with the
    same files; the one that came second starts over.
    """
    for attempt in range(ATTEMPTS):
        try:
            _replace(catalogue, arrays.root, arrays.metadata(specs, attributes))
            return
        except ConflictError:
            if attempt == ATTEMPTS - 1:
                raise


def metadata_problems(
    catalogue: Catalogue, root: Path, keys: Iterable[str] | None = None
) -> dict[str, str]:
    """Metadata files (all, or the given ones) that are not what the catalogue says: key -> what is wrong."""
    problems: dict[str, str] = {}
    for look in range(LOOKS):
        if look:
            time.sleep(0.05 * look)
        accepted = catalogue.metadata_digests()
        wanted = accepted if keys is None else [key for key in keys if key in accepted]
        problems = {}
        for key in wanted:
            found = _digest(root / key)
            if found not in accepted[key]:
                problems[key] = (
                    "its SHA-256 is not the catalogue's" if found else "is missing or not a file"
                )
        if not problems:
            break
    return problems


def check_metadata(catalogue: Catalogue, arrays: ArrayBackend, store: Path) -> None:
    """Do arrays and catalogue belong together, and is the file that describes the arrays sound?

    DamagedShard where not, RejectedInput for one that this package never writes. Looks at the file in the array folder itself only; `verify` at all of them.
    """
    top = [key for key in catalogue.metadata_digests() if "/" not in key]
    problems = metadata_problems(catalogue, arrays.root, top)
    for key, what in problems.items():
        try:
            held = arrays.attributes().get("uuid")
        except DamagedShard:
            held = None
        if held not in (None, catalogue.uuid):
            raise DamagedShard(
                f"{arrays.root / key} is of another store ({held}, the catalogue is of {catalogue.uuid}): "
                f"copy the whole folder of one store, or, if only this file was damaged, run `labelstore repair {store}`"
            )
        raise DamagedShard(f"{arrays.root / key}: {what}; run `labelstore repair {store}`")
    for key in top:
        if (refused := arrays.metadata_problem(key)) is not None:
            raise RejectedInput(
                f"{arrays.root / key}: {refused}: get the store from somebody you trust"
            )


def _digest(path: Path) -> str:
    """SHA-256 of a regular file; empty where there is none."""
    try:
        if path.is_symlink() or not path.is_file():
            return ""
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror})") from error


def _replace(catalogue: Catalogue, root: Path, files: Mapping[str, bytes]) -> None:
    accepted = catalogue.metadata_digests()
    changes: dict[str, tuple[str | None, str | None]] = {}
    for key, data in files.items():
        new = hashlib.sha256(data).hexdigest()
        old = accepted.get(key, frozenset())
        if old != {new} or _digest(root / key) != new:
            changes[key] = (next(iter(old - {""}), None), new)
    # files of arrays that were dropped
    gone = [key for key, known in accepted.items() if key not in files and known != {""}]
    changes |= {key: (next(iter(accepted[key] - {""}), None), None) for key in gone}
    if not changes:
        return
    token = catalogue.begin_metadata(changes)
    with StagedFiles() as staged:
        for key in changes.keys() - set(gone):
            staged.stage(root / key, files[key])

        def publish() -> None:
            staged.publish()
            for key in gone:
                with storage_errors(root / key):
                    (root / key).unlink(missing_ok=True)

        catalogue.finish_metadata(publish, token)
