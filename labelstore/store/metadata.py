"""Changing the arrays' metadata files in three steps, so that a kill in between can be finished.

They carry no checksum of their own: the catalogue has their digests, which are compared when a store is opened.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from labelstore.arrays.array_spec import ArraySpec
from labelstore.arrays.backend import ArrayBackend
from labelstore.arrays.checked_files import MAX_METADATA_BYTES, read_limited
from labelstore.arrays.durable import StagedFiles, storage_errors
from labelstore.arrays.sharding import Damage
from labelstore.catalogue import Catalogue
from labelstore.catalogue.metadata_files import ArrayRows
from labelstore.errors import ConflictError, DamagedShard, RejectedInput
from labelstore.store.layout import all_specs

ATTEMPTS = 10
LOOKS = 3
"""How often a file that does not match is looked at again: another worker may be replacing it."""


Described = tuple[Sequence[ArraySpec], Mapping[str, Mapping[str, Any]]]
"""All arrays of a store, and the attributes of its groups."""


def replace_metadata(
    catalogue: Catalogue,
    arrays: ArrayBackend,
    describe: Callable[[ArrayRows], Described],
    *,
    damaged: Collection[str] = (),
) -> None:
    """Write the metadata of all arrays of a store: intent row, files, intent dropped with the new digests.

    Only files are written whose digest in the catalogue is another one, or that are known as `damaged`; none is
    read: a label set more costs its own files and those of the groups around it.

    Metadata is a function of the catalogue, which `describe` computes from one state of it, and the intent is
    only accepted while the catalogue is in that state. So two workers that add arrays at once both end with
    the files of both; the one that came second starts over.
    """
    for attempt in range(ATTEMPTS):
        rows = catalogue.metadata.array_rows()
        files = arrays.metadata(*describe(rows))
        try:
            _replace(catalogue, rows, arrays.root, files, damaged)
            return
        except ConflictError:
            if attempt == ATTEMPTS - 1:
                raise
            # an intent makes all older ones start over: without a pause they would go on doing so to each other
            time.sleep(random.uniform(0, 0.01 * 2 ** min(attempt, 6)))


def metadata_problems(
    catalogue: Catalogue,
    root: Path,
    keys: Iterable[str] | None = None,
    accepted: Mapping[str, frozenset[str]] | None = None,
) -> dict[str, str]:
    """Metadata files (all, or the given ones) that are not what the catalogue says: key -> what is wrong.

    `accepted` are the digests that it said just now.
    """
    problems: dict[str, str] = {}
    for look in range(LOOKS):
        if look:
            time.sleep(0.05 * look)
        if look or accepted is None:
            accepted = catalogue.metadata.digests()
        wanted = accepted if keys is None else [key for key in keys if key in accepted]
        problems = {}
        for key in wanted:
            digest = _digest(root / key)
            if digest not in accepted[key]:
                problems[key] = (
                    "its SHA-256 is not the catalogue's"
                    if digest
                    else "is missing, not a file, or larger than metadata is"
                )
        if not problems:
            break
    return problems


def undescribed_groups(
    catalogue: Catalogue, arrays: ArrayBackend, damaged: Collection[str] = ()
) -> dict[str, str]:
    """Metadata files without an array of the catalogue's, or with another shape: key -> what is wrong.

    A kill between a row and its files once left them so, for good; `damaged` are files known as such. A change
    that was only interrupted is no problem: the next process that opens the store to write finishes it.
    """
    problems: dict[str, str] = {}
    for look in range(LOOKS):
        if look:
            time.sleep(0.05 * look)
        try:
            if catalogue.metadata.pending():
                return {}
            found = arrays.undescribed(all_specs(catalogue.metadata.array_rows()))
        except DamagedShard:
            return {}  # told with the catalogue's tables, or as the one file that says everything
        problems = {key: what for key, what in found.items() if key not in damaged}
        if not problems:
            break
    return problems


def check_metadata(catalogue: Catalogue, arrays: ArrayBackend, store: Path) -> None:
    """Do arrays and catalogue belong together, and is the file that describes the arrays sound?

    DamagedShard where not, RejectedInput for one that this package never writes. Looks at the file in the array
    folder itself only; `verify` at all of them.
    """
    accepted = catalogue.metadata.digests()
    top = [key for key in accepted if "/" not in key]
    problems = metadata_problems(catalogue, arrays.root, top, accepted)
    for key, what in problems.items():
        try:
            uuid = arrays.attributes().get("uuid")
        except DamagedShard:
            uuid = None
        if uuid not in (None, catalogue.uuid):
            raise DamagedShard(
                f"{arrays.root / key} is of another store ({uuid}, the catalogue is of {catalogue.uuid}): "
                "copy the whole folder of one store, or, if only this file was damaged, run "
                f"`labelstore.repair(labelstore.open({str(store)!r}))`"
            )
        raise DamagedShard(
            f"{arrays.root / key}: {what}; run `labelstore.repair(labelstore.open({str(store)!r}))`"
        )
    for key in top:
        if (refused := arrays.metadata_problem(key)) is not None:
            raise RejectedInput(
                f"{arrays.root / key}: {refused}: get the store from somebody you trust"
            )


def _digest(path: Path) -> str:
    """SHA-256 of a regular file; empty where there is none, or one larger than metadata is."""
    try:
        data = read_limited(path, MAX_METADATA_BYTES)
    except Damage:
        return ""
    return "" if data is None else hashlib.sha256(data).hexdigest()


def _replace(
    catalogue: Catalogue,
    rows: ArrayRows,
    root: Path,
    files: Mapping[str, bytes],
    damaged: Collection[str],
) -> None:
    announced: dict[str, tuple[str | None, str | None]] = {}

    def changes(
        accepted: Mapping[str, frozenset[str]],
    ) -> dict[str, tuple[str | None, str | None]]:
        announced.clear()
        for key, data in files.items():
            new = hashlib.sha256(data).hexdigest()
            old = accepted.get(key, frozenset())
            if old != {new} or key in damaged:
                announced[key] = (next(iter(old - {""}), None), new)
        # files of arrays that were dropped
        for key in accepted.keys() - files.keys():
            if accepted[key] != {""}:
                announced[key] = (next(iter(accepted[key] - {""}), None), None)
        return announced

    token = catalogue.metadata.begin_from(rows, changes)
    if token is None:
        return
    gone = [key for key, (_, new) in announced.items() if new is None]
    with StagedFiles() as staged:
        for key in announced.keys() - set(gone):
            staged.stage(root / key, files[key])

        def publish() -> None:
            staged.publish()
            for key in gone:
                with storage_errors(root / key):
                    (root / key).unlink(missing_ok=True)

        catalogue.metadata.finish(publish, token)
