"""Making and opening a store."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from labelstore.arrays import open_arrays
from labelstore.arrays.base import ArrayBackend
from labelstore.arrays.durable import fsync_folder, storage_errors
from labelstore.catalogue import Catalogue
from labelstore.catalogue.records import PlanRow
from labelstore.crops import CropPlan
from labelstore.errors import ConflictError, StoreNotFound, UsageError
from labelstore.images import ImageFolder, scan_folder
from labelstore.schema import FORMAT_VERSION, check_num_crops, choose_layout
from labelstore.store.metadata import check_metadata
from labelstore.store.store import Store

CATALOGUE_FILE = "catalogue.db"
CATALOGUE_URL_FILE = "catalogue.url"
MANIFEST_FILE = "labelstore.json"
"""Written by `freeze`: while it is there, nothing else is."""
ARRAY_FOLDERS = {"zarr": "arrays.zarr", "hdf5": "arrays"}
DEFAULT_BYTES_PER_CROP = 48.0
"""Raw bytes of a crop's rows with K=5 and room for more label sets: sizes the shards of a plan."""


def open_store(path: str | Path, *, readonly: bool = False, checked: bool = True) -> Store:
    """Open a store; read-only by itself where it is frozen or its folder cannot be written.

    StoreNotFound if there is none, FormatVersionError if it is of a newer format, DamagedShard if
    catalogue and arrays do not belong together (`checked` False, as `verify` and `repair` open it,
    does not look).
    """
    path = Path(path)
    catalogue = Catalogue.open(
        _catalogue_url(path), readonly=readonly, frozen_mark=path / MANIFEST_FILE
    )
    store = Store(path, catalogue, _backend(path))
    if not catalogue.readonly and catalogue.pending_metadata():
        store.write_metadata()  # a change of metadata was interrupted: finish it from the catalogue
    if checked:
        check_metadata(catalogue, store.arrays, path)
    return store


def create(
    path: str | Path,
    *,
    images: str | Path | ImageFolder,
    num_crops: int,
    seed: int = 0,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip_prob: float = 0.5,
    plan_name: str = "plan",
    stored_crops: bool = True,
    images_per_shard: int | None = None,
    crops_per_shard: int | None = None,
    bytes_per_crop: float = DEFAULT_BYTES_PER_CROP,
    backend: str = "zarr",
) -> Store:
    """A new store with its images registered and one crop plan; no labels yet.

    `images` is a folder with one subfolder per class. The store appears under its name only when it is
    whole. ConflictError if there is something at `path` already.
    """
    path = Path(path)
    plan = CropPlan(seed=seed, scale=scale, ratio=ratio, flip_prob=flip_prob)
    if backend not in ARRAY_FOLDERS:
        raise UsageError(f"--backend {backend}: choose one of {', '.join(ARRAY_FOLDERS)}")
    if path.exists():
        raise ConflictError(f"{path} exists already: give another path, or remove it first")
    check_num_crops(num_crops)
    folder = images if isinstance(images, ImageFolder) else scan_folder(Path(images))
    layout = choose_layout(
        len(folder.keys),
        num_crops,
        bytes_per_crop,
        images_per_shard=images_per_shard,
        crops_per_shard=crops_per_shard,
    )
    identity = uuid.uuid4().hex
    building = path.with_name(f".{path.name}.{identity[:8]}.tmp")
    with storage_errors(path):
        (building / ARRAY_FOLDERS[backend]).mkdir(parents=True)
    try:
        catalogue = Catalogue.create(
            _sqlite_url(building), uuid=identity, format_version=FORMAT_VERSION
        )
        with Store(building, catalogue, _backend(building)) as store:
            catalogue.add_classes(folder.classes)
            catalogue.add_images(folder.keys, folder.class_ids, folder.sizes, folder.mtimes_ns)
            catalogue.add_plan(
                PlanRow(
                    name=plan_name,
                    num_crops=num_crops,
                    images_per_shard=layout.images_per_shard,
                    crops_per_shard=layout.crops_per_shard,
                    crops_per_chunk=layout.crops_per_chunk,
                    stored=stored_crops,
                    parameters=plan.to_record(),
                )
            )
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
            fsync_folder(path.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return open_store(path)


def exists(path: str | Path) -> bool:
    """True where a store is."""
    path = Path(path)
    return (path / CATALOGUE_FILE).exists() or (path / CATALOGUE_URL_FILE).exists()


def _catalogue_url(path: Path) -> str:
    if not path.exists():
        raise StoreNotFound(
            f"no store at {path}: make one with `labelstore create {path} --images DIR ...`"
        )
    if (path / CATALOGUE_URL_FILE).exists():
        return (path / CATALOGUE_URL_FILE).read_text().strip()
    if not (path / CATALOGUE_FILE).exists():
        raise StoreNotFound(
            f"{path} is not a store: it has no {CATALOGUE_FILE}; give the folder that `labelstore create` made"
        )
    return _sqlite_url(path)


def _sqlite_url(path: Path) -> str:
    return f"sqlite:///{(path / CATALOGUE_FILE).absolute()}"


def _backend(path: Path) -> ArrayBackend:
    for name, folder in ARRAY_FOLDERS.items():
        if (path / folder).is_dir():
            return open_arrays(path / folder, name)
    raise StoreNotFound(
        f"{path} has a catalogue but no arrays ({' or '.join(ARRAY_FOLDERS.values())}): copy the whole folder"
    )
