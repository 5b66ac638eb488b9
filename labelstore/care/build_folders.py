"""Hidden folders `.NAME.XXXXXXXX.tmp` in which `create` and `freeze` build a store, left behind by a kill.

They lie beside the store, under its name. One without a write for an hour is abandoned.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from labelstore.arrays.durable import storage_errors
from labelstore.store.opening import ARRAY_FOLDERS

_BUILT = {"catalogue.db", "catalogue.db-journal", "labelstore.json", *ARRAY_FOLDERS.values()}
"""All that a folder being built can hold; others' folders are left alone."""


def build_folders(store: Path) -> Iterator[tuple[Path, int, float]]:
    """(folder, bytes, seconds since anything in it was written) of every one beside a store."""
    name = re.compile(rf"\.{re.escape(store.name)}\.[0-9a-f]{{8}}\.tmp")
    parent = store.absolute().parent
    with storage_errors(parent):
        found = [entry for entry in os.scandir(parent) if name.fullmatch(entry.name)]
    for entry in found:
        folder = Path(entry.path)
        if not entry.is_dir(follow_symlinks=False):
            continue
        held = {inner.name for inner in folder.iterdir() if not inner.name.endswith(".tmp")}
        if held - _BUILT:
            continue
        size, newest = 0, entry.stat(follow_symlinks=False).st_mtime
        for root, _, files in os.walk(folder):
            for path in (Path(root), *(Path(root) / file for file in files)):
                try:
                    status = path.lstat()
                except FileNotFoundError:
                    continue  # being built: renamed meanwhile
                newest = max(newest, status.st_mtime)
                size += status.st_size if path != Path(root) else 0
        yield folder, size, max(0.0, time.time() - newest)


def remove_build_folder(folder: Path) -> None:
    """Remove one; StorageError names it."""
    with storage_errors(folder):
        shutil.rmtree(folder)
