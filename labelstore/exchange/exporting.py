"""Labels out: a label set, or a part of it, as the files that other code reads. The target appears when it is whole.

Each format writes one image block after the other; what it loses is said where the format is (docs/formats).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from labelstore.arrays.durable import storage_errors
from labelstore.codecs.base import SparseLabels
from labelstore.errors import ConflictError, IncompleteError, UsageError
from labelstore.exchange.source import Progress

if TYPE_CHECKING:
    from labelstore.store import LabelSet


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which images and crops go out; everything by default."""

    classes: Sequence[str] = ()
    """Names of classes of the ground truth."""
    images: Sequence[str] = ()
    """Keys."""
    crops: range | None = None
    """Crop numbers."""


@dataclass(frozen=True, kw_only=True)
class ExportedBlock:
    """The chosen images of one image block: n images, m crops, K kept classes."""

    keys: Sequence[str]
    first_crop: int
    sides: NDArray[np.int64]
    """(n, 2) height and width of the images, pixels."""
    boxes: NDArray[np.uint16]
    """(n, m, 4) top, left, height, width."""
    flips: NDArray[np.bool_]
    """(n, m)."""
    labels: SparseLabels | NDArray[np.float32]
    """(n, m, K) classes and probabilities, or dense (n, m, C)."""


class Writer(Protocol):
    """One format: makes its files below a folder."""

    def write(self, block: ExportedBlock) -> int:
        """Write some images; the number of files."""


MakeWriter: TypeAlias = Callable[[Path, "LabelSet"], Writer]
"""(folder, label set) -> a writer."""


EXPORTS = {
    "fkd": ("fkd_export", "FkdWriter"),
    "npz": ("table_export", "NpzWriter"),
    "parquet": ("table_export", "ParquetWriter"),
}
"""Name -> module of this package and its writer."""


def writer_of(format_name: str) -> MakeWriter:
    """What makes the writer of a format; UsageError for an unknown one."""
    if format_name not in EXPORTS:
        raise UsageError(f"no format {format_name!r} to export: choose one of {', '.join(EXPORTS)}")
    module, writer = EXPORTS[format_name]
    found: MakeWriter = getattr(import_module(f"labelstore.exchange.{module}"), writer)
    return found


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written."""

    format: str
    target: Path
    images: int
    crops: int
    files: int
    left_out: int
    """Images without labels, left out as bad when they were made."""

    def to_record(self) -> dict[str, Any]:
        """JSON values."""
        return {**vars(self), "target": str(self.target)}


def export_labels(
    labels: LabelSet,
    *,
    format_name: str,
    target: str | Path,
    selection: Selection | None = None,
    allow_incomplete: bool = False,
    dry_run: bool = False,
    progress: Progress = lambda done, total: None,
) -> ExportReport:
    """Write the chosen crops of a label set into the folder `target`, which must not exist.

    ConflictError where it does, UsageError for a selection that is not the store's, IncompleteError for an
    unfinished label set without `allow_incomplete`, StorageError where the disk refuses.
    """
    make_writer = writer_of(format_name)
    target = Path(target)
    if target.exists():
        raise ConflictError(f"{target} exists already: give another path, or remove it first")
    if not labels.is_complete and not allow_incomplete:
        raise IncompleteError(
            f"label set {labels.name} has {len(labels.blocks)} of {labels.layout.num_blocks} image blocks: finish "
            "it with `labelstore create`, or export what is there with --allow-incomplete"
        )
    chosen = _chosen_rows(labels, selection or Selection())
    crops = _chosen_crops(labels, selection or Selection())
    present = labels.present & chosen
    building = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    files = images = 0
    total = int(present.sum())
    if dry_run:
        return ExportReport(
            format=format_name, target=target, images=total, crops=total * len(crops), files=0,
            left_out=int(chosen.sum()) - total,
        )  # fmt: skip
    with storage_errors(target):
        try:
            building.mkdir(parents=True)
            writer = make_writer(building, labels)
            for block in labels.blocks:
                rows = np.array(labels.block_rows(block))
                inside = np.flatnonzero(present[rows])
                if len(inside):
                    files += writer.write(_block(labels, block, rows, inside, crops))
                    images += len(inside)
                    progress(images, total)
            building.rename(target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return ExportReport(
        format=format_name,
        target=target,
        images=images,
        crops=images * len(crops),
        files=files,
        left_out=int(chosen.sum()) - total,
    )


def _block(
    labels: LabelSet,
    block: int,
    rows: NDArray[np.int64],
    inside: NDArray[np.int64],
    crops: range,
) -> ExportedBlock:
    per = labels.plan.crops_per_chunk
    columns = range(crops.start // per, -(-crops.stop // per))
    within = slice(crops.start - columns.start * per, crops.stop - columns.start * per)
    boxes, flips = labels.crops(block, columns)
    found: SparseLabels | NDArray[np.float32]
    if labels.codec.kept(labels.num_classes) is None:
        found = labels.dense(block, columns)[inside, within]
    else:
        whole = labels.sparse(block, columns)
        found = SparseLabels(
            class_ids=whole.class_ids[inside, within],
            probs=whole.probs[inside, within],
            rest=whole.rest[inside, within],
        )
    facts: Mapping[str, NDArray[Any]] = labels.store.image_columns
    chosen = rows[inside]
    return ExportedBlock(
        keys=[str(facts["key"][row]) for row in chosen],
        first_crop=crops.start,
        sides=np.stack([facts["height"][chosen], facts["width"][chosen]], 1).astype(np.int64),
        boxes=boxes[inside, within],
        flips=flips[inside, within],
        labels=found,
    )


def _chosen_rows(labels: LabelSet, selection: Selection) -> NDArray[np.bool_]:
    store = labels.store
    chosen = np.ones(labels.layout.num_rows, bool)
    if selection.images:
        chosen[:] = False
        chosen[store.image_rows(list(selection.images))] = True
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
        raise UsageError(
            f"crops {crops.start}-{crops.stop - 1}: this plan has crops 0-{labels.num_crops - 1}"
        )
    return crops
