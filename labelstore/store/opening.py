"""Making and opening a store."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sqlalchemy import URL

from labelstore.arrays import open_arrays
from labelstore.arrays.backend import ArrayBackend
from labelstore.arrays.durable import (
    check_new_place,
    fsync_folder,
    storage_errors,
    write_file,
)
from labelstore.catalogue import Catalogue
from labelstore.catalogue.engines import parse_url, sqlite_url
from labelstore.catalogue.records import PlanRow
from labelstore.catalogue.server import (
    check_server_url,
    drop_catalogue,
    make_schema,
    name_server,
    own_schema_url,
)
from labelstore.errors import (
    ConflictError,
    DamagedShard,
    FormatVersionError,
    LabelStoreError,
    RejectedInput,
    StoreNotFound,
    UsageError,
    check_utf8,
)
from labelstore.images import ImageSource, check_keys, open_images
from labelstore.store.frozen_store import open_remote
from labelstore.store.layout import FORMAT_VERSION
from labelstore.store.metadata import check_metadata
from labelstore.store.plan_options import PlanOptions
from labelstore.store.store import Store
from labelstore.store.untrusted_store import refuse_links, refuse_rows

CATALOGUE_FILE = "catalogue.db"
CATALOGUE_URL_FILE = "catalogue.url"
MAX_URL_BYTES = 4096
MANIFEST_FILE = "labelstore.json"
"""Written by `freeze`: while it is there, nothing else is."""
ARRAY_FOLDERS = {"zarr": "arrays.zarr", "hdf5": "arrays"}
DEFAULT_BYTES_PER_CROP = 48.0
"""Raw bytes of a crop's rows with K=5 and room for more label sets: sizes the shards of a plan."""


def open_store(
    path: str | Path,
    *,
    readonly: bool = False,
    checked: bool = True,
    cache: str | Path | None = None,
) -> Store:
    """Open a store; read-only by itself where it is frozen or its folder cannot be written.

    StoreNotFound if there is none, FormatVersionError if it is of a newer format, RejectedInput for
    links and rows that no store of ours has, DamagedShard if catalogue and arrays do not belong
    together (`checked` False, as `verify` and `repair` open it, does not look).

    A frozen store may also be in object storage (s3://, gs://, az://, https://): its catalogue comes into the
    folder `cache` (LABELSTORE_CACHE, or the user's cache folder), its arrays are read by range.
    """
    if (remote := storage_url(path)) is not None:
        return open_remote(remote, cache=None if cache is None else Path(cache))
    path = Path(path)
    # a folder that may not be entered, or a disk that fails, at the first look
    with storage_errors(path):
        refuse_links(path)
        url = catalogue_url(path)
    catalogue = _catalogue(path, url, readonly=readonly)
    with catalogue.reading():
        refuse_rows(catalogue, path)
        interrupted = not catalogue.readonly and bool(catalogue.metadata.pending())
    store = Store(path, catalogue, _backend(path))
    if interrupted:
        store.finish_metadata()
    if checked:
        check_metadata(catalogue, store.arrays, path)
    return store


def create(
    path: str | Path,
    *,
    images: str | Path | ImageSource,
    plan: PlanOptions | PlanRow,
    bytes_per_crop: float = DEFAULT_BYTES_PER_CROP,
    backend: str = "zarr",
    catalogue: str | None = None,
    fill: Callable[[Store], None] | None = None,
) -> Store:
    """A new store with its images registered and one crop plan; no labels yet.

    `images` is a folder with one subfolder per class, or what else `images.open_images` takes. `plan` says how crops
    are drawn, or is the row of a plan from elsewhere; `bytes_per_crop` sizes the shards of the former.
    The store appears under its name only when it is whole. ConflictError if there is something at `path`
    already, UsageError inside another store. `fill` registers more before the store appears.
    `catalogue` is the URL of a PostgreSQL database, without a password: the store gets a schema of its own
    there, and `catalogue.url` in its folder.
    """
    refuse_remote(path, "a store cannot be made there")
    path = Path(path)
    if catalogue is not None:
        check_server_url(catalogue)
        name_server(catalogue)
    if backend not in ARRAY_FOLDERS:
        raise UsageError(f"`backend={backend}`: choose one of {', '.join(ARRAY_FOLDERS)}")
    check_new_store(path)
    if isinstance(plan, PlanOptions):
        _ = plan.crops_per_image  # refused before the images are listed
    folder = open_images(images)
    check_keys(folder.keys)
    check_utf8("".join(folder.classes))
    row = plan if isinstance(plan, PlanRow) else plan.row(len(folder.keys), bytes_per_crop)
    identity = uuid.uuid4().hex
    made: str | None = None  # a catalogue on a server that no store refers to yet
    url = None if catalogue is None else own_schema_url(catalogue, identity)
    building = path.with_name(f".{path.name}.{identity[:8]}.tmp")
    with storage_errors(path):
        (building / ARRAY_FOLDERS[backend]).mkdir(parents=True)
    try:
        if url is not None:
            make_schema(url)
            write_file(building / CATALOGUE_URL_FILE, f"{url}\n".encode())

        def register(catalogue: Catalogue) -> None:
            catalogue.add_classes(folder.classes)
            catalogue.images.add(folder.keys, folder.class_ids, folder.sizes, folder.mtimes_ns)
            catalogue.plans.add(row)

        new_catalogue = Catalogue.create(
            url or sqlite_url(building / CATALOGUE_FILE),
            uuid=identity,
            format_version=FORMAT_VERSION,
            fill=register,
        )
        made = url
        with Store(building, new_catalogue, _backend(building)) as store:
            if fill is not None:
                fill(store)
            store.write_metadata()
        with storage_errors(path):
            try:
                building.rename(path)
            except OSError:
                if path.exists():
                    raise ConflictError(
                        f"{path} was made by another process meanwhile: run the command again to join it"
                    ) from None
                raise
            made = None
            fsync_folder(path.parent)
    except BaseException:
        if made is not None:
            with suppress(LabelStoreError):  # the first error is the one to tell
                drop_catalogue(made)
        raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    # not by `open_store`: what it refuses in a stranger's store, this process has just written
    return Store(path, _catalogue(path, catalogue_url(path), readonly=False), _backend(path))


def check_new_store(path: Path) -> None:
    """ConflictError where something is at `path`, otherwise as `check_new_place`."""
    if path.exists():
        _refuse_lost_catalogue(path)
        raise ConflictError(f"{path} exists already: give another path, or remove it first")
    check_new_place(path)


def storage_url(path: str | os.PathLike[str]) -> str | None:
    """The URL, if the path is one of object storage; None for a folder. A `Path` has lost one of the two slashes."""
    match = re.fullmatch(r"(s3|gs|az|https?):(?:/+(.*))?", str(path))
    return None if match is None else f"{match[1]}://{match[2] or ''}"


def refuse_remote(path: str | Path, what: str) -> None:
    """UsageError for what cannot be done to a store in object storage."""
    url = storage_url(path)
    if url is not None:
        raise UsageError(
            f"{url}: {what}; a frozen store in object storage can be read, copy it to a disk for everything else"
        )


def catalogue_server(path: Path) -> str | None:
    """The URL of the server that keeps the catalogue of the store at `path`; None where it is a file."""
    if not (path / CATALOGUE_URL_FILE).exists() or _is_frozen_with_catalogue(path):
        return None
    return _url_in_file(path / CATALOGUE_URL_FILE)


def exists(path: str | Path) -> bool:
    """True where a store is."""
    refuse_remote(path, "a store cannot be made there")
    path = Path(path)
    return (path / CATALOGUE_FILE).exists() or (path / CATALOGUE_URL_FILE).exists()


def _catalogue(path: Path, url: str | URL, *, readonly: bool) -> Catalogue:
    try:
        return Catalogue.open(url, readonly=readonly, frozen_mark=path / MANIFEST_FILE)
    except FormatVersionError:
        raise
    except StoreNotFound:
        # a file that holds no catalogue, beside arrays: it was one
        if (path / CATALOGUE_FILE).is_file() and _array_folder(path) is not None:
            raise DamagedShard(
                f"{path / CATALOGUE_FILE}: holds no catalogue: restore it from a copy"
            ) from None
        raise


def _refuse_lost_catalogue(path: Path) -> None:
    """DamagedShard for a folder with arrays and no catalogue: a store that lost it."""
    if not exists(path) and _array_folder(path) is not None:
        raise DamagedShard(
            f"{path} has arrays and no {CATALOGUE_FILE}, which says what they hold: restore it from a copy, "
            "or remove the folder and begin again"
        )


def _array_folder(path: Path) -> Path | None:
    """The array folder, if it has the file that describes the arrays."""
    folders = (path / folder for folder in ARRAY_FOLDERS.values())
    described = ("zarr.json", "arrays.json")
    return next((f for f in folders if any((f / name).is_file() for name in described)), None)


def catalogue_url(path: Path) -> str | URL:
    """Where the catalogue of the store at `path` is; StoreNotFound if there is none."""
    refuse_remote(path, "its catalogue cannot be changed")
    check_utf8(str(path.absolute()))
    if not path.exists():
        raise StoreNotFound(
            f"no store at {path}: make one with `labelstore.create({str(path)!r}, images=DIR, ...)`"
        )
    if (url := catalogue_server(path)) is not None:
        return url
    if not (path / CATALOGUE_FILE).exists():
        _refuse_lost_catalogue(path)
        raise StoreNotFound(
            f"{path} is not a store: it has no {CATALOGUE_FILE}; give the folder that `labelstore.create` made"
        )
    return sqlite_url(path / CATALOGUE_FILE)


def _url_in_file(path: Path) -> str:
    """The one line of `catalogue.url`: a server's, since a file elsewhere is not the store's."""
    with storage_errors(path), path.open("rb") as file:
        data = file.read(MAX_URL_BYTES + 1)
    url = data.decode(errors="replace").strip()
    if len(data) > MAX_URL_BYTES or not url.isprintable() or not url.startswith("postgresql"):
        raise RejectedInput(
            f"{path}: is not the URL of a catalogue on a server (postgresql://HOST/DATABASE): restore the file"
        )
    try:
        parse_url(url)
    except UsageError as error:
        raise RejectedInput(f"{path}: {error}") from None
    return url


def _is_frozen_with_catalogue(path: Path) -> bool:
    # freezing in place ends with the removal of catalogue.url; a kill before that must not matter
    return (path / MANIFEST_FILE).exists() and (path / CATALOGUE_FILE).exists()


def _backend(path: Path) -> ArrayBackend:
    for name, folder in ARRAY_FOLDERS.items():
        if (path / folder).is_dir():
            return open_arrays(path / folder, name)
    raise StoreNotFound(
        f"{path} has a catalogue but no arrays ({' or '.join(ARRAY_FOLDERS.values())}): copy the whole folder"
    )
