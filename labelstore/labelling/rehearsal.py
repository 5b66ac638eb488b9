"""Dry runs of what a teacher labels: the real thing on a copy without labels, stopped before the first crop.

Nothing is checked for a dry run alone. So what it says yes to, the command does: teacher, class map, sizes of shards,
plan and codec are chosen, compared and registered as they will be, in a temporary folder that is removed.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from labelstore.catalogue.server import copy_to_file
from labelstore.commit.lease_keeper import Progress
from labelstore.errors import LabelStoreError
from labelstore.store import open_store
from labelstore.store.opening import CATALOGUE_FILE, CATALOGUE_URL_FILE, exists

_LEFT_OUT = ("c.*", "*.h5", "*.tmp", "spool", f"{CATALOGUE_FILE}*", CATALOGUE_URL_FILE)
"""Shards, and what is not a store's own; the catalogue is copied row by row."""


class _Rehearsed(BaseException):
    """Everything was as it has to be; no error, so that nothing on the way takes it for one."""


def rehearse(path: Path, label: Callable[[Path, Progress], object]) -> None:
    """Call `label(store's path, progress)` on a copy of the store at `path`, or on none if there is none.

    Ends when it first tells its progress, before anything is labelled. Raises what it raises, in the store's own name.
    """

    def stop(done: int, total: int) -> None:
        raise _Rehearsed

    with _copy_without_labels(path) as copy:
        try:
            label(copy, stop)
        except _Rehearsed:
            pass
        except LabelStoreError as error:
            # a KeyError's own text is quoted; the first argument is the message of all of them
            said = str(error.args[0]) if error.args else str(error)
            raise type(error)(said.replace(str(copy), str(path))) from error


@contextmanager
def _copy_without_labels(path: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="labelstore-dry-run-") as folder:
        copy = Path(folder) / "store"
        if exists(path):
            shutil.copytree(path, copy, ignore=shutil.ignore_patterns(*_LEFT_OUT), symlinks=True)
            with open_store(path, readonly=True) as store, store.catalogue.reading() as conn:
                copy_to_file(conn, copy / CATALOGUE_FILE)
        yield copy
