"""`labelstore create` as one call: make the store if it is not there, then label every crop."""

from __future__ import annotations

import math
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from labelstore.arrays.durable import check_new_place
from labelstore.catalogue.named_rows import check_name
from labelstore.catalogue.records import PlanRow
from labelstore.catalogue.server import (
    check_server_url,
    copy_to_file,
    drop_catalogue,
    name_server,
    same_server,
)
from labelstore.codecs import MarginalSmoothing
from labelstore.codecs.base import LabelCodec
from labelstore.commit.lease_keeper import Progress
from labelstore.commit.spool import spooled_crops
from labelstore.errors import ConflictError, LabelStoreError
from labelstore.images import ImageSource, open_images, torchvision_classes
from labelstore.labelling.generate import (
    GenerationReport,
    checked,
    label,
    no_progress,
)
from labelstore.labelling.generation_options import GenerationOptions, check_augmented
from labelstore.labelling.image_check import check_images, note_ignored
from labelstore.labelling.labelling import Labelling
from labelstore.labelling.plan_choice import plan_from
from labelstore.store import PlanOptions, Store, create, open_store
from labelstore.store.layout import PLAN_FIELDS
from labelstore.store.opening import CATALOGUE_FILE, CATALOGUE_URL_FILE, catalogue_server, exists
from labelstore.teachers.teacher import Teacher, load_teacher
from labelstore.teachers.teacher_check import TeacherCheck, TeacherEvaluation


def label_images(
    path: str | Path,
    *,
    images: str | Path | ImageSource,
    teacher: str | Teacher,
    codec: LabelCodec,
    plan: PlanOptions | None = None,
    plan_of: str | Path | None = None,
    backend: str = "zarr",
    catalogue: str | None = None,
    generation: GenerationOptions | None = None,
    check: TeacherCheck | None = None,
    progress: Progress = no_progress,
    note: Callable[[str], None] = lambda message: None,
) -> GenerationReport:
    """Plan `plan.num_crops` crops of every image, register the teacher, label every crop.

    `plan_of` is another store whose plan is taken, with its number of crops and layout. On a store that exists with
    the same plan it resumes or joins, also where another process makes it at this moment; with another plan it
    raises ConflictError naming the difference. A store that this call made is removed again where it fails before
    any image has labels. Everything else as in `labelstore.create` and `labelstore.generate`.
    """
    path, options = Path(path), generation or GenerationOptions()
    # everything that can be refused is refused before the teacher is loaded and the store appears
    plan = plan or PlanOptions()
    is_new = not exists(path)
    if is_new:
        check_new_place(path)
    check_catalogue(path, catalogue, is_new=is_new)
    folder = open_images(images)
    if plan_of is not None:
        plan = plan_from(Path(plan_of), plan, folder, note)
    _ = plan.crops_per_image
    check_augmented(plan.augmentation or plan.mixing, codec, options.crop_device)
    teacher = load_teacher(teacher) if isinstance(teacher, str) else teacher
    if plan.mixing is not None:
        plan = replace(plan, mixing=replace(plan.mixing, side=teacher.row.input_size))
    evaluation: TeacherEvaluation | None = None
    store: Store | None = None
    if is_new:
        check_name(options.name or teacher.row.name)
        labelling = Labelling.of(teacher, codec, options, folder, note=note)
        _note_numbered_classes(labelling, note)
        labelling = labelling.with_lost_mass(note)
        if check is not None:
            evaluation = labelling.measured(check, folder.classes, None, note)
        store = _make(path, plan, backend, catalogue, labelling)
    made = store is not None
    try:
        with store or open_store(path) as store:
            gone = frozenset[int]()
            if made:
                note_ignored(folder, note)
                plan_row = store.plan(plan.name)
            else:
                plan_row = _same_plan(store, plan)
                row = store.find_label_set(options.name or teacher.row.name)
                gone = check_images(store, folder, note, skip_bad=options.skip_bad)
                labelling = Labelling.of(
                    teacher, codec, options, folder, store=store, row=row, note=note
                )
                # measured already where another process made the store meanwhile
                asked = check if evaluation is None else None
                labelling, again = checked(store, labelling, plan_row, row, asked, note)
                evaluation = evaluation or again
            return label(
                store,
                labelling,
                plan_row,
                gone=gone,
                evaluation=evaluation,
                progress=progress,
                note=note,
            )
    except BaseException:
        if made:
            with suppress(LabelStoreError, OSError):  # the first error is the one to tell
                _remove_if_empty(path)
        raise


def _note_numbered_classes(labelling: Labelling, note: Callable[[str], None]) -> None:
    """Say how class folders that are called by numbers are counted, where nothing else says what an output is."""
    folder = labelling.images
    is_named = labelling.options.class_map is not None or labelling.teacher.class_names is not None
    if not is_named and folder.classes != torchvision_classes(folder).classes:
        note(
            f"the class folders of {folder.root} are called by numbers and counted as numbers: output k of the "
            "teacher is taken for the k-th number. Where the teacher was trained with torchvision's ImageFolder, "
            "which sorts them as text, give class_map"
        )


def _make(
    path: Path, plan: PlanOptions, backend: str, catalogue: str | None, labelling: Labelling
) -> Store | None:
    """The new store; None where another process was faster."""
    raw = sum(
        np.dtype(field.dtype).itemsize * math.prod(field.shape)
        for field in (*labelling.fields, *PLAN_FIELDS)
        if field.per == "crop"
    )
    codec = labelling.codec
    if isinstance(codec, MarginalSmoothing) and codec.tail_classes and plan.crops_per_image <= 200:
        # an image has a table in every crop shard: one shard, one table
        plan = replace(plan, crops_per_shard=plan.crops_per_shard or plan.num_crops)
    try:
        return create(
            path,
            images=labelling.images,
            plan=plan,
            bytes_per_crop=raw,
            backend=backend,
            catalogue=catalogue,
        )
    except ConflictError:
        if not exists(path):
            raise
        return None


def check_catalogue(path: Path, url: str | None, *, is_new: bool) -> None:
    """UsageError for a URL that names no server; ConflictError for a store whose catalogue is elsewhere."""
    if url is None:
        return
    check_server_url(url)
    if is_new:
        return  # the process that creates the store names its server
    server = catalogue_server(path)
    if server is None or not same_server(server, url):
        raise ConflictError(
            f"{path} exists with its catalogue {'in a file' if server is None else 'on another server'}: "
            "leave `catalogue` out, or give another STORE"
        )
    name_server(url)


def _same_plan(store: Store, asked: PlanOptions) -> PlanRow:
    """The plan of a store that exists; ConflictError where another one was asked for."""
    plans = {row.name: row for row in store.catalogue.plans.all()}
    if asked.name not in plans:
        raise ConflictError(
            f"{store.path} has crop plan {', '.join(plans)}, not {asked.name}: use `plan_name={next(iter(plans))}`, "
            "or another store"
        )
    row = plans[asked.name]
    old = {**row.parameters, "num_crops": row.num_crops, "stored": row.stored}
    new = {
        **asked.parameters(row.parameters),
        "num_crops": asked.num_crops,
        "stored": asked.stores_crops,
    }
    for setting in old | new:
        before, value = old.get(setting), new.get(setting)
        if (list(before) if isinstance(before, tuple) else before) != value:
            raise ConflictError(
                f"{store.path} exists with {setting.replace('_', ' ')} {before}, asked for {value}: "
                + (
                    "use the same, `labelstore.grow`,"
                    if setting == "num_crops"
                    else "use the same,"
                )
                + " or give another STORE"
            )
    return row


def _remove_if_empty(path: Path) -> None:
    """Remove a store without any labelled image, so that a failed first attempt leaves nothing."""
    with open_store(path, readonly=True) as store:
        used = (
            any(count for count, _ in store.catalogue.ledger.counts().values())
            or bool(store.catalogue.leases.live())
            or any(any(spooled_crops(folder).values()) for folder in path.glob("spool/*"))
        )
    if not used:
        url = catalogue_server(path)
        # under another name first, so that no process joins a store that is being removed
        gone = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        if url is not None:
            drop_catalogue(url)


_LEFT_OUT = ("c.*", "*.h5", "*.tmp", "spool", f"{CATALOGUE_FILE}*", CATALOGUE_URL_FILE)
"""Shards, and what is not a store's own; the catalogue is copied row by row."""


class _Rehearsed(BaseException):
    """Everything was as it has to be; no error, so that nothing on the way takes it for one."""


def rehearse(path: Path, label: Callable[[Path, Progress], object]) -> None:
    """Call `label(store's path, progress)` on a copy of the store at `path`, or on none if there is none.

    Ends when it first tells its progress, before anything is labelled. Raises what it raises, in the store's own name.
    """

    def stop(done: int, total: int) -> None:
        if done < total and exists(path):
            with open_store(path, readonly=True) as store:
                store.catalogue.check_writable()
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
