"""Stores from elsewhere: files and rows that no version of this package writes are refused before they are used.

A catalogue's digests say that its rows are what somebody wrote, not that it was us. So names that become
folders, numbers that become memory and links that lead out of the folder are looked at whenever a store is
opened; `catalogue.shard_rows` and `catalogue.metadata_intents` look at the file names that they hand out.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from labelstore.catalogue import Catalogue
from labelstore.catalogue.named_rows import check_name
from labelstore.catalogue.record_columns import fits
from labelstore.catalogue.records import LabelSetRow, MaskRow, PlanRow, TeacherRow
from labelstore.codecs import codec_from_record
from labelstore.codecs.base import with_class_ids
from labelstore.cropping.crop_augmentation import planned_augmentation
from labelstore.cropping.crop_mixing import planned_mixing
from labelstore.cropping.crop_plan import CropPlan, is_imported
from labelstore.errors import DamagedShard, FormatVersionError, RejectedInput
from labelstore.store.label_outputs import OUTPUT_NAMES
from labelstore.store.layout import (
    MOST_IMAGES_PER_SHARD,
    Layout,
    check_num_crops,
    label_layout,
    plan_fields,
    specs,
)

Facts: TypeAlias = Mapping[str, Any]
"""Key -> type."""

MAX_CLASSES = 1 << 24
MOST_PIXELS = 1 << 14
"""Longest side of a teacher's input."""
MAX_ROWS = 1 << 32

_FILES = (
    "catalogue.db",
    "catalogue.db-journal",
    "catalogue.url",
    "labelstore.json",
)
# how many levels of folders there are below crops, labels and masks: zarr has one for each array
_FOLDERS = {"arrays.zarr": 2, "arrays": 1}
_KINDS = ("crops", "labels", "masks")
_WAL_FILES = ("catalogue.db-wal", "catalogue.db-shm")
_NO_WAL = (
    "labelstore never uses SQLite's write-ahead log: if the store is yours, close what else has its catalogue "
    "open, and run `sqlite3 catalogue.db 'PRAGMA journal_mode=DELETE'`"
)
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")


def refuse_links(path: Path) -> None:
    """RejectedInput for a link, device or pipe where a store has a file or folder of its own.

    The store's folder itself may be reached through a link. A hard link to a catalogue is refused, since
    SQLite writes into the file; a shard with several names is read like any other, as its bytes are compared
    with the ledger and it is never written into. (`arrays.checked_files` refuses links among the shards.)
    """
    for name in _FILES:
        status = _status(path / name)
        if status is None:
            continue
        if not stat.S_ISREG(status.st_mode):
            raise _no_file(path / name, "file")
        if name.startswith("catalogue.db") and status.st_nlink > 1:
            raise RejectedInput(
                f"{path / name} has {status.st_nlink} names (hard links): what is written here would change "
                "elsewhere too; copy the store and open the copy"
            )
    _refuse_write_ahead_log(path)
    _refuse_super_journal(path / "catalogue.db-journal")
    # the files in it are looked at by `store.spool`, which opens them
    _refuse_linked_folders(path / "spool", 1)
    for name, levels in _FOLDERS.items():
        _refuse_linked_folders(path / name, 0)
        for kind in _KINDS:
            _refuse_linked_folders(path / name / kind, levels)


def _refuse_write_ahead_log(path: Path) -> None:
    """SQLite writes into these files, or maps them into memory, as soon as it reads the catalogue."""
    for name in _WAL_FILES:
        if _status(path / name) is not None:
            raise RejectedInput(f"{path / name} is there: {_NO_WAL}")
    # catalogue.db itself is not opened here: closing it would give up the locks that this process has on it


def _refuse_super_journal(path: Path) -> None:
    """A journal may end with the name of any file, which SQLite deletes when it has rolled the journal back.

    It is written where one transaction changes several databases, which none of ours does.
    """
    status = _status(path)
    if status is None or status.st_size < 2 * len(_JOURNAL_MAGIC):
        return
    try:
        with path.open("rb") as file:
            file.seek(-len(_JOURNAL_MAGIC), os.SEEK_END)
            end = file.read()
    except OSError:
        return  # who needs it will say so
    if end == _JOURNAL_MAGIC:
        raise RejectedInput(
            f"{path} names a further file for SQLite to delete: get the store from somebody you trust"
        )


def _refuse_linked_folders(folder: Path, levels: int) -> None:
    """The folder and so many levels of folders below it; the shards, which may be many, are not listed."""
    status = _status(folder)
    if status is None:
        return
    if not stat.S_ISDIR(status.st_mode):
        raise _no_file(folder, "folder")
    if levels == 0:
        return
    try:
        with os.scandir(folder) as entries:
            inner = [
                Path(entry.path) for entry in entries if not entry.is_file(follow_symlinks=False)
            ]
    except OSError:
        return  # who needs it will say so
    for found in inner:
        _refuse_linked_folders(found, levels - 1)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:
        return None


def _no_file(path: Path, due: str) -> RejectedInput:
    what = "a link" if path.is_symlink() else f"no {due}"
    return RejectedInput(
        f"{path} is {what}: a store is made of plain files and folders; put what it stands for in its place"
    )


def refuse_rows(catalogue: Catalogue, store: Path) -> None:
    """RejectedInput for crop plans, label sets and masks with names or numbers that no store has.

    FormatVersionError for a law of crops that this version does not know. Rows that do not match their
    digest are refused when they are read.
    """
    try:
        num_rows = catalogue.images.num_rows()
        plans = {row.name: row for row in catalogue.plans.all()}
        label_sets, masks = catalogue.label_sets.all(), catalogue.masks.all()
        teachers = catalogue.teachers.all()
    except DamagedShard:
        return
    for teacher in teachers:
        with _refused(store, "teacher", teacher.name):
            _check_teacher(teacher)
    for plan in plans.values():
        with _refused(store, "crop plan", plan.name):
            _check_plan(plan, num_rows)
    for label_set in label_sets:
        with _refused(store, "label set", label_set.name):
            _check_label_set(label_set, plans, num_rows)
    for mask in masks:
        with _refused(store, "mask", mask.name):
            _check_mask(mask, plans)


@contextmanager
def _refused(store: Path, what: str, name: str) -> Iterator[None]:
    """Whatever a check stumbles over, as one line that names the row."""
    try:
        yield
    except FormatVersionError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error.args[0] if error.args else error).split())
        raise RejectedInput(
            f"{store}: {what} {name[:100]!r} is none that labelstore writes ({reason[:300]}): "
            "get the store from somebody you trust"
        ) from None


_CLASS_MAP: Facts = {
    "outputs": tuple[int, ...],
    "lost_mass": Mapping[str, Any] | None,
    "source": str | None,
}
_LABEL_FACTS: Facts = {
    "images": str | None,
    "images_kind": str,
    "autocast": str,
    "crop_device": str,
    "decode_device": str,
    "compile": bool,
    "class_map": Mapping[str, Any] | None,
    "output_of_class": Mapping[str, Any] | None,
    "outputs_are": str,
    "imported_from": Mapping[str, Any],
    "stated": Mapping[str, Any],
    "versions": Mapping[str, str],
}
_TEACHER_FACTS: Facts = {
    "crop_mode": str,
    "weights": str,
    "evaluation": Mapping[str, Any] | None,
    OUTPUT_NAMES: tuple[str, ...] | None,
}
"""What is read of facts, by key: any may be missing, and others are only shown."""


def _check_facts(facts: Mapping[str, Any], kinds: Facts) -> None:
    for key, kind in kinds.items():
        if key in facts and not fits(facts[key], kind):
            raise ValueError(f"{key} {str(facts[key])[:40]!r}")


def _check_teacher(row: TeacherRow) -> None:
    _check_facts(row.facts, _TEACHER_FACTS)
    _check_facts(row.facts.get("evaluation") or {}, {"num_images": int | None})
    if not (0 < row.input_size <= MOST_PIXELS and 1 <= row.num_classes <= MAX_CLASSES):
        raise ValueError(f"{row.num_classes} classes at {row.input_size} pixels")
    if not all(map(math.isfinite, (row.crop_pct, row.top1 or 0.0))):
        raise ValueError("a number that is not finite")


def _check_plan(plan: PlanRow, num_rows: int) -> None:
    check_name(plan.name)
    check_num_crops(plan.num_crops)
    if not 0 <= num_rows <= MAX_ROWS:
        raise ValueError(f"{num_rows} images")
    if not 1 <= plan.images_per_shard <= MOST_IMAGES_PER_SHARD:
        raise ValueError(f"{plan.images_per_shard} images in a shard")
    if not 1 <= plan.crops_per_chunk <= plan.crops_per_shard <= plan.num_crops:
        raise ValueError(
            f"{plan.num_crops} crops in shards of {plan.crops_per_shard}, chunks of {plan.crops_per_chunk}"
        )
    if not is_imported(plan.parameters):
        CropPlan.from_record(plan.parameters)
        planned_augmentation(plan.parameters)
        mixing = planned_mixing(plan.parameters)
        if bool(plan.parameters.get("mixed")) != (mixing is not None):
            raise ValueError("mixed crops without a law")
        if mixing is not None and mixing.rows > num_rows:
            raise ValueError(f"partners among {mixing.rows} images of {num_rows}")
    elif not plan.stored:
        raise ValueError("imported crops that are not stored")
    # chunks that would not fit into memory are refused where an array is described
    specs(f"crops/{plan.name}", plan_fields(plan.parameters), Layout.of(plan, max(num_rows, 1)))


def _check_label_set(row: LabelSetRow, plans: Mapping[str, PlanRow], num_rows: int) -> None:
    check_name(row.name)
    if not 1 <= row.num_classes <= MAX_CLASSES:
        raise ValueError(f"{row.num_classes} classes")
    if not (math.isfinite(row.temperature) and row.temperature > 0):
        raise ValueError(f"temperature {row.temperature}")
    _check_facts(row.facts, _LABEL_FACTS)
    class_map = row.facts.get("class_map") or {}
    _check_facts(class_map, _CLASS_MAP)
    _check_facts(class_map.get("lost_mass") or {"mean": 0.0}, {"mean": float})
    record = row.codec if row.is_settled else with_class_ids(row.codec, "plain")
    fields = codec_from_record(record).fields(row.num_classes)
    specs(f"labels/{row.name}", fields, label_layout(row, plans[row.plan], max(num_rows, 1)))


def _check_mask(row: MaskRow, plans: Mapping[str, PlanRow]) -> None:
    check_name(row.name)
    _check_facts(row.rule, {"temperature": float, "epsilon": float})
    plan = plans[row.plan]
    if not 1 <= row.num_crops <= plan.num_crops or row.num_crops % plan.crops_per_shard:
        raise ValueError(f"{row.num_crops} of {plan.num_crops} crops")
