"""Labels out: a label set, or a part of it, as the files that other code reads.

Each format writes one image block after the other; what it loses is said where the format is (docs/reference/formats).
The target is whole or is not there: it is built under a hidden name beside it, made durable, then renamed. A process
that is killed leaves `.NAME.PID-RANDOM.tmp` beside the target, never the target.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.arrays.durable import (
    TEMPORARY_SUFFIX,
    check_new_place,
    fsync_folder,
    fsync_path,
    storage_errors,
)
from labelstore.codecs import relative_temperature
from labelstore.commit.lease_keeper import Progress
from labelstore.errors import ConflictError, IncompleteError, NotGenerated, UsageError
from labelstore.exchange.exported import Export, Form, Selection, Writer, read_block
from labelstore.store.unfinished import covered_labels, what_is_missing

if TYPE_CHECKING:
    from labelstore.store import LabelSet

EXPORTS = {
    "fkd": ("torch_export", "FkdWriter"),
    "relabel": ("torch_export", "ReLabelWriter"),
    "tokenlabeling": ("torch_export", "TokenLabelingWriter"),
    "ml-dr": ("torch_export", "MlDrWriter"),
    "npz": ("table_export", "NpzWriter"),
    "parquet": ("table_export", "ParquetWriter"),
    "hdf5": ("table_export", "Hdf5Writer"),
    "webdataset": ("webdataset_export", "WebDatasetWriter"),
}
"""Name -> module of `exchange.writers` and its writer."""


def writer_of(format_name: str) -> type[Writer]:
    """Return the class that writes a format; UsageError for an unknown one."""
    if format_name not in EXPORTS:
        raise UsageError(f"no format {format_name!r} to export: choose one of {', '.join(EXPORTS)}")
    module, writer = EXPORTS[format_name]
    writer_type: type[Writer] = getattr(
        import_module(f"labelstore.exchange.writers.{module}"), writer
    )
    return writer_type


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written."""

    format: str
    target: Path
    images: int
    crops: int
    files: int | None
    """None where nothing was written."""
    left_out: int
    """Images without labels, left out as bad when they were made."""
    temperature: float
    """T of the labels as written; 1 for outputs before softmax and maps."""

    def to_record(self) -> dict[str, Any]:
        """JSON values."""
        return {**vars(self), "target": str(self.target)}


def export_labels(
    labels: LabelSet,
    *,
    format: str,
    target: str | Path,
    selection: Selection | None = None,
    form: Form | None = None,
    temperature: float | None = None,
    allow_incomplete: bool = False,
    dry_run: bool = False,
    progress: Progress = lambda done, total: None,
) -> ExportReport:
    """Write the chosen crops of a label set to `target`, a folder or a file that must not exist.

    Labels go out at `temperature` T of the teacher's logits; None is T0, at which they were made. Outputs before
    softmax and maps go out as they are.

    ConflictError where it does, UsageError for a selection that is not the store's, labels that the format cannot hold
    or a temperature that they cannot have, IncompleteError for an unfinished label set without `allow_incomplete`,
    StorageError where the disk refuses. Until all is written and synced, nothing has the target's name.
    """
    writer_type, target, selection = writer_of(format), Path(target), selection or Selection()
    form = form or Form()
    _check_form(form, writer_type, format)
    check_new_place(target)
    refuse_existing(target)
    if not labels.is_complete:
        if not allow_incomplete:
            raise IncompleteError(
                f"{what_is_missing(labels)}, or export what is there with `allow_incomplete`"
            )
        labels = covered_labels(labels)
    if writer_type.wants_maps and selection.crops is not None:
        raise UsageError(f"`crops` with {format}: a map is of a whole image, leave it out")
    chosen, crops = _chosen_rows(labels, selection), _chosen_crops(labels, selection)
    present = labels.present & chosen
    total = int(present.sum())
    if not total:
        raise NotGenerated(
            f"none of the {int(chosen.sum())} chosen images has labels in {labels.name}"
        )
    export = _export(labels, writer_type, format, crops, total, form, temperature)
    images = files = 0
    if dry_run:
        writer_type(target, export)
        images = total
    else:
        with delivered(target, is_file=writer_type.single_file) as place:
            writer = writer_type(place, export)
            try:
                for block in labels.blocks:
                    rows = np.array(labels.block_rows(block))
                    inside = np.flatnonzero(present[rows])
                    if len(inside):
                        files += writer.write(read_block(export, block, rows, inside))
                        images += len(inside)
                        progress(images, total)
                files += writer.finish()
            finally:
                writer.abandon()
    return ExportReport(
        format=format,
        target=target,
        images=images,
        crops=images * len(crops),
        files=None if dry_run else files,
        left_out=int(chosen.sum()) - total,
        temperature=export.temperature,
    )


def _export(
    labels: LabelSet,
    writer_type: type[Writer],
    format_name: str,
    crops: range,
    num_images: int,
    form: Form,
    temperature: float | None,
) -> Export:
    codec = labels.codec
    if writer_type.wants_maps and codec.takes != "map":
        raise UsageError(
            f"label set {labels.name} is {codec.name}: {format_name} files are maps of whole images, as "
            "`labelstore.generate` makes them with `compression=labelmap`"
        )
    is_mixed = bool(labels.plan.parameters.get("mixed"))
    if is_mixed and not writer_type.keeps_mixing:
        raise UsageError(
            f"crop plan {labels.plan.name} has crops that were mixed with others before the teacher saw them, which "
            f"{format_name} cannot say: ml-dr and hdf5 can"
        )
    if labels.plan.parameters.get("augmentation") and not writer_type.keeps_augmentation:
        raise UsageError(
            f"crops of {labels.plan.name} were augmented as the plan records, which {format_name} cannot say: hdf5 "
            "has the plan's parameters"
        )
    in_force = labels.temperature if temperature is None else temperature
    relative_temperature(codec, temperature, labels.temperature)
    if (writer_type.wants_maps or codec.takes == "outputs") and in_force != 1:
        raise UsageError(
            f"temperature {in_force:g} with {codec.name} in {format_name} files: they hold what comes before the "
            "softmax; leave it out"
        )
    if writer_type.made_at not in (None, in_force):
        raise UsageError(
            f"labels at temperature {in_force:g} in {format_name} files, whose readers take labels for those at "
            f"temperature {writer_type.made_at:g}: give that as the temperature"
        )
    kept = None if writer_type.wants_maps else labels.listed
    return Export(
        labels=labels,
        crops=crops,
        num_images=num_images,
        form=form,
        kept=kept,
        as_maps=writer_type.wants_maps,
        is_mixed=is_mixed,
        temperature=in_force,
    )


def _check_form(form: Form, writer_type: type[Writer], format_name: str) -> None:
    for field, value in vars(form).items():
        if value is not None and field not in writer_type.form:
            raise UsageError(f"`{field}={value}`: {format_name} has no such choice, leave it out")


def _chosen_rows(labels: LabelSet, selection: Selection) -> NDArray[np.bool_]:
    store = labels.store
    chosen = np.ones(labels.layout.num_rows, bool)
    if selection.images:
        chosen[:] = False
        chosen[store.image_rows(selection.images)] = True
    else:
        chosen[store.free] = False
    if selection.classes:
        unknown = sorted(set(selection.classes) - set(store.class_names))
        if unknown:
            raise UsageError(
                f"no class {unknown[0]!r} in {store.path}: its classes are like {store.class_names[0]!r}"
            )
        ids = [store.class_names.index(name) for name in selection.classes]
        chosen &= np.isin(labels.ground_truth, ids)
    if not chosen.any():
        raise UsageError("the selection holds no image: choose other classes or images")
    return chosen


def _chosen_crops(labels: LabelSet, selection: Selection) -> range:
    crops = range(labels.num_crops) if selection.crops is None else selection.crops
    if not (0 <= crops.start < crops.stop <= labels.num_crops and crops.step == 1):
        given = f"{crops.start}-{crops.stop - 1}" if len(crops) else "of an empty range"
        raise UsageError(f"crops {given}: this plan has crops 0-{labels.num_crops - 1}")
    return crops


MANY_FILES = 1000
"""From so many on, one `sync` of the machine stands for that of every file, which alone is a flush of the disk: 3
ms each, an hour for a million. It waits as long, and does not say what failed; a disk that is full or not ours has
said so before."""
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS)


def refuse_existing(target: Path) -> None:
    """ConflictError where something has that name already, a dangling link too."""
    if os.path.lexists(target):
        raise ConflictError(f"{target} exists already: give another path, or remove it first")


@contextlib.contextmanager
def delivered(target: Path, *, is_file: bool) -> Iterator[Path]:
    """A hidden name to build at: a new folder, or a file still to be made. Its content is `target` afterwards.

    Where the block raises, it is removed. ConflictError where `target` came to be meanwhile, StorageError where
    the disk refuses.
    """
    refuse_existing(target)
    mark = f"{os.getpid()}-{secrets.token_hex(4)}"
    building = target.with_name(f".{target.name}.{mark}{TEMPORARY_SUFFIX}")
    with storage_errors(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if not is_file:
                building.mkdir()
            yield building
            _make_durable(building)
            _give_name(building, target, is_file=is_file)
            fsync_folder(target.parent)
        finally:
            with contextlib.suppress(OSError):
                building.unlink() if is_file else shutil.rmtree(building)


def _give_name(building: Path, target: Path, *, is_file: bool) -> None:
    """Rename without replacing anything (a folder may replace an empty one)."""
    if is_file:
        try:
            os.link(building, target)
            return
        except FileExistsError:
            refuse_existing(target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
    refuse_existing(target)
    building.rename(target)


def _make_durable(building: Path) -> None:
    if building.is_file():
        fsync_path(building)
        return
    many = sum(len(files) for _, _, files in os.walk(building)) >= MANY_FILES
    if many:
        os.sync()
    for place, _, files in os.walk(building):
        for name in [] if many else files:
            fsync_path(Path(place, name))
        fsync_folder(Path(place))
