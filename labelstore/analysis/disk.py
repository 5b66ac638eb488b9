"""Bytes on disk by array, from the ledger: what the store takes, what it would take at another scale, and FKD."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np

from labelstore.analysis.fkd_files import FkdKind, Kind, fkd_kinds
from labelstore.arrays.array_spec import ArraySpec
from labelstore.codecs import is_map
from labelstore.errors import UsageError

if TYPE_CHECKING:
    from labelstore.catalogue.records import ShardRow
    from labelstore.store import Store


@dataclass(frozen=True, kw_only=True)
class ArrayStorage:
    """One array, or all arrays of a group where a file holds several."""

    group: str
    """"crops/PLAN", "labels/NAME" or "masks/NAME"."""
    array: str
    """Array name; "all" where a file holds several arrays."""
    dtype: str
    raw_per_crop: float
    """Bytes before compression."""
    disk_bytes: int
    """Committed files."""
    disk_per_crop: float | None
    """None where nothing is committed."""
    scaled_bytes: int | None
    """At the scale asked for, with the same bytes per crop."""


@dataclass(frozen=True, kw_only=True)
class LabelSetStorage:
    """One label set with its boxes and flips, beside what FKD's files take for the same labels."""

    label_set: str
    codec: str
    crops: int
    """Committed crops."""
    labels_per_crop: float | None
    boxes_per_crop: float | None
    """Boxes and flips; 0 with seeded crops. Label sets on one plan share them."""
    total_per_crop: float | None
    fkd: FkdKind | None
    """FKD's file of the same kind; None where FKD has no such kind."""

    @property
    def ratio(self) -> float | None:
        """FKD's bytes per crop over ours."""
        if not self.total_per_crop or self.fkd is None:
            return None
        return self.fkd.file_bytes_per_crop / self.total_per_crop


@dataclass(frozen=True, kw_only=True)
class Storage:
    """What a store takes, array by array; the catalogue and other files apart."""

    num_images: int
    num_crops: int
    scale: tuple[int, int]
    """(N, M) of the scaled figures and of FKD's."""
    arrays: tuple[ArrayStorage, ...]
    label_sets: tuple[LabelSetStorage, ...]
    kinds: tuple[FkdKind, ...]
    """FKD Table 2 at `scale`."""
    arrays_bytes: int
    """All committed files."""
    metadata_bytes: int
    """Other files in the array folder: metadata, and what `gc` would remove."""
    catalogue_bytes: int
    """None where the catalogue is on a database server."""

    def to_record(self) -> dict[str, Any]:
        """JSON values."""
        record = asdict(self)
        record["scale"] = list(self.scale)
        for entry, row in zip(record["label_sets"], self.label_sets, strict=True):
            entry["ratio"] = row.ratio
        return record


def storage(store: Store, *, scale: str | tuple[int, int] | None = None) -> Storage:
    """Bytes of every array of `store`, and of FKD's files for the same labels.

    `scale` ("1281167x200" or (N, M)) asks what the same bytes per crop come to there; the store's own N and
    M otherwise. Sizes are the ledger's: nothing is read but the catalogue and the folder's listing.
    """
    everything = _folder_bytes(store.arrays.root)
    _ = store.free  # reading it may take seconds, and a transaction holds up writers
    # one transaction: half of the time was that of opening one for every question
    with store.catalogue.reading():
        return _storage(store, scale, everything)


def _storage(store: Store, scale: str | tuple[int, int] | None, everything: int) -> Storage:
    own = (store.num_images, store.num_crops)
    wanted = own if scale is None else parse_scale(scale) if isinstance(scale, str) else scale
    arrays: list[ArrayStorage] = []
    per_crop: dict[str, float | None] = {}
    crops: dict[str, int] = {}
    total = 0
    for group in store.group_names():
        kind, _, name = group.partition("/")
        row = store.label_set_row(name) if kind == "labels" else None
        if row is not None and not row.is_settled:
            continue  # the form of its class ids is chosen with the first shard, so it has no arrays yet
        specs, layout = store.group_specs(group)
        rows = store.group(group).rows()
        # a map serves all crops of its image
        is_whole = row is not None and is_map(row.codec)
        together = own[1] if is_whole else layout.crops_per_shard
        crops[group] = sum(store.num_images_in(layout.rows(r.block)) for r in rows) * together
        found = _group_arrays(group, specs, together, rows, crops[group], wanted)
        arrays += found
        size = sum(entry.disk_bytes for entry in found)
        per_crop[group] = size / crops[group] if crops[group] else None
        total += size
    return Storage(
        num_images=own[0],
        num_crops=own[1],
        scale=wanted,
        arrays=tuple(arrays),
        label_sets=tuple(_label_sets(store, per_crop, crops, wanted)),
        kinds=fkd_kinds(*wanted, num_classes=_num_classes(store)),
        arrays_bytes=total,
        metadata_bytes=max(0, everything - total),
        catalogue_bytes=store.catalogue.num_bytes(),
    )


def parse_scale(text: str) -> tuple[int, int]:
    """(N, M) of "1281167x200".

    >>> parse_scale("1281167x200")
    (1281167, 200)
    """
    match = re.fullmatch(r"\s*([\d_,]+)\s*[x*\u00d7]\s*([\d_,]+)\s*", text)
    parts = [int(re.sub("[_,]", "", part) or "0") for part in match.groups()] if match else [0]
    if min(parts) < 1:
        raise UsageError(f"scale {text!r}: give images x crops per image, like 1281167x200")
    return parts[0], parts[1]


def _group_arrays(
    group: str,
    specs: Iterable[ArraySpec],
    crops_per_shard: int,
    rows: Iterable[ShardRow],
    crops: int,
    wanted: tuple[int, int],
) -> list[ArrayStorage]:
    sizes: dict[str, int] = defaultdict(int)
    for row in rows:
        for file in row.files:
            names = {path.rpartition("/")[2] for path in file.chunks}
            sizes[names.pop() if len(names) == 1 else "all"] += file.size
    raw = {spec.name: _raw_per_crop(spec, crops_per_shard) for spec in specs}
    dtypes = {spec.name: np.dtype(spec.dtype).name for spec in specs}
    if "all" in sizes:
        raw, dtypes = {"all": sum(raw.values())}, {"all": ", ".join(dtypes.values())}
        sizes = defaultdict(int, {"all": sum(sizes.values())})
    found = []
    for name in raw:
        per_crop = sizes[name] / crops if crops else None
        found.append(
            ArrayStorage(
                group=group,
                array=name,
                dtype=dtypes[name],
                raw_per_crop=raw[name],
                disk_bytes=sizes[name],
                disk_per_crop=per_crop,
                scaled_bytes=None if per_crop is None else round(per_crop * prod(wanted)),
            )
        )
    return found


def _raw_per_crop(spec: ArraySpec, crops_per_shard: int) -> float:
    # a row per image and shard is shared by the shard's crops
    rows = spec.shard[0] * crops_per_shard
    return np.dtype(spec.dtype).itemsize * prod(spec.shard) / rows


def _label_sets(
    store: Store, per_crop: dict[str, float | None], crops: dict[str, int], wanted: tuple[int, int]
) -> Iterable[LabelSetStorage]:
    for row in store.catalogue.label_sets.all():
        labels = per_crop.get(f"labels/{row.name}")
        boxes = per_crop.get(f"crops/{row.plan}", 0.0)
        kind, k = str(row.codec["name"]), row.codec.get("k")
        fkd = None
        if kind in get_args(Kind):
            (fkd,) = fkd_kinds(
                *wanted, num_classes=row.num_classes, kinds=((cast("Kind", kind), k),)
            )
        yield LabelSetStorage(
            label_set=row.name,
            codec=" ".join(
                str(row.codec[key])
                for key in ("name", "k", "tail_classes", "values_per_code", "dtype")
                if key in row.codec
            ),
            crops=crops.get(f"labels/{row.name}", 0),
            labels_per_crop=labels,
            boxes_per_crop=boxes,
            total_per_crop=None if labels is None or boxes is None else labels + boxes,
            fkd=fkd,
        )


def _num_classes(store: Store) -> int:
    sets = store.catalogue.label_sets.all()
    return sets[0].num_classes if sets else max(len(store.class_names), 1)


def _folder_bytes(root: Path | str) -> int:
    # scandir knows a folder from a file without asking for each: rglob took four times as long
    with os.scandir(root) as entries:
        return sum(
            _folder_bytes(entry.path)
            if entry.is_dir(follow_symlinks=False)
            else entry.stat(follow_symlinks=False).st_size
            for entry in entries
        )
