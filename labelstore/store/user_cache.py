"""The user's cache folder: what can always be made again, such as the table of images of a large store as columns.

Checking a million rows takes seconds, and every command would. A file of the cache is named by the store and by the
digest that the catalogue keeps of the table, so a table that has changed is never met again. Only tables that were read
and found sound are kept, and only those that are settled: every image decoded or left out. A file that is damaged or
cannot be written makes a command slower, never wrong.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.arrays.durable import make_folders, write_file
from labelstore.catalogue import Catalogue
from labelstore.catalogue.image_blocks import ImageColumns, is_given
from labelstore.errors import RejectedInput, StorageError
from labelstore.images import check_keys

CACHE_VARIABLE = "LABELSTORE_CACHE"


def default_cache() -> Path:
    """LABELSTORE_CACHE, or the user's cache folder."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "labelstore"


MIN_ROWS = 100_000
"""Smaller tables are read in about a second."""
FORMAT = 1
DIGEST_BYTES = 32
"""A file begins with the digest of the rest, a npz archive."""
_PLAIN = {
    "class_id": "<i4",
    "width": "<i4",
    "height": "<i4",
    "digest": "|u1",
    "has_digest": "|b1",
    "size": "<i8",
    "mtime_ns": "<i8",
    "free": "|b1",
}
_SEPARATOR = "\n"


def image_columns(
    catalogue: Catalogue, *, min_rows: int = MIN_ROWS, cache: Path | None = None
) -> ImageColumns:
    """`ImageTable.columns`, from the cache where the same table was read before."""
    with catalogue.reading():
        if catalogue.images.num_images() < min_rows:
            return catalogue.images.columns()
    digest = catalogue.images.digest()
    folder = (cache or default_cache()) / "images"
    path = folder / f"{catalogue.uuid}-{digest}.npz"
    kept = _read(path, lambda: catalogue.images.columns()["key"])
    if kept is not None:
        return kept
    columns = catalogue.images.columns()
    # another process may have changed the table between the two: then the name would be wrong
    if _is_settled(columns) and catalogue.images.digest() == digest:
        _write(path, columns, catalogue.uuid)
    return columns


def _is_settled(columns: ImageColumns) -> bool:
    return bool((columns["has_digest"] | is_given(columns["bad"])).all())


def _write(path: Path, columns: ImageColumns, uuid: str) -> None:
    keys = _SEPARATOR.join(columns["key"])
    if keys.count(_SEPARATOR) != max(0, len(columns["key"]) - 1):
        return
    reasons = {row: why for row, why in enumerate(columns["bad"]) if why is not None}
    texts = {"keys": keys, "bad": json.dumps(list(reasons.values()))}
    arrays = {name: columns[name] for name in _PLAIN}
    arrays |= {name: np.frombuffer(text.encode(), np.uint8) for name, text in texts.items()}
    arrays |= {"bad_rows": np.array(list(reasons), np.int64), "format": np.array(FORMAT)}
    packed = io.BytesIO(bytes(DIGEST_BYTES))
    packed.seek(DIGEST_BYTES)
    np.savez(packed, **arrays)  # type: ignore[arg-type]
    with packed.getbuffer() as data:
        data[:DIGEST_BYTES] = _digest(data[DIGEST_BYTES:])
    with suppress(StorageError, OSError):
        make_folders(path.parent)
        write_file(path, packed.getvalue())
        for older in path.parent.glob(f"{uuid}-*.npz"):
            if older != path:
                older.unlink(missing_ok=True)


def _read(path: Path, keys: Callable[[], NDArray[Any]]) -> ImageColumns | None:
    """The columns of a file, None where it is not there or not what `_write` wrote; `keys` gives those of the table."""
    try:
        data = memoryview(path.read_bytes())
        if _digest(data[DIGEST_BYTES:]) != data[:DIGEST_BYTES]:
            return None
        with np.load(io.BytesIO(data[DIGEST_BYTES:]), allow_pickle=False) as file:
            return _columns({name: file[name] for name in file.files}, keys)
    except (OSError, ValueError, LookupError, TypeError, zipfile.BadZipFile, RejectedInput):
        return None


def _digest(data: memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def _columns(
    found: dict[str, NDArray[Any]], table_keys: Callable[[], NDArray[Any]]
) -> ImageColumns:
    if int(found["format"]) != FORMAT:
        raise ValueError(found["format"])
    columns = {name: found[name] for name in _PLAIN}
    total = len(columns["free"])
    for name, dtype in _PLAIN.items():
        shape = (total, 16) if name == "digest" else (total,)
        if columns[name].shape != shape or columns[name].dtype.str != dtype:
            raise ValueError(name)
    columns["bad"] = np.full(total, None, dtype=object)
    columns["bad"][found["bad_rows"]] = json.loads(found["bad"].tobytes())

    def keys() -> NDArray[Any]:
        split = np.array(found["keys"].tobytes().decode().split(_SEPARATOR), dtype=object)
        try:
            if len(split) != total or ((split == "") != columns["free"]).any():
                raise ValueError(len(split))
            check_keys(split[~columns["free"]].tolist())
        except (ValueError, RejectedInput):
            return table_keys()
        return split

    return ImageColumns(columns, keys)
