"""What an import writes to: the store, crop plan, teacher and label set, made where they are not there yet."""

from __future__ import annotations

import hashlib
import math
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from labelstore.catalogue.records import LabelSetRow, PlanRow, TeacherRow
from labelstore.codecs import codec_from_options
from labelstore.codecs.base import LabelCodec, with_class_ids
from labelstore.codecs.labelmap import LabelMap
from labelstore.codecs.recovery import check_temperature
from labelstore.commit.label_set_rows import refuse_differences, register, teacher_differences
from labelstore.cropping.crop_plan import CropPlan, imported_record
from labelstore.errors import ConflictError, UsageError
from labelstore.exchange.labels import Contents, LabelSource, check_conversion
from labelstore.exchange.stated import ImportOptions, Stated
from labelstore.images import ImageSource
from labelstore.store import Store, create, open_store
from labelstore.store.label_outputs import Outputs
from labelstore.store.layout import check_num_crops, choose_layout, plan_fields
from labelstore.store.opening import exists

PLAN = "plan"
MAP_CROPS = 200
"""Crops of a plan for label maps where none are asked for: they cost nothing, being computed."""
MAX_CLASSES = 1 << 24
_COMPARED = frozenset({"compression", "k", "num_classes", "temperature"})
"""Stated values that are compared as what they led to, so that a default may be said or not."""
_DEFAULTS = {
    "kept": "ms",
    "kept-outputs": "mr",
    "probabilities": "full",
    "outputs": "logits",
    "embedding": "logits",
    "map": "labelmap",
}


@dataclass(frozen=True, kw_only=True)
class Target:
    """The label set that the labels become."""

    format: str
    name: str
    plan: str
    num_crops: int
    num_classes: int
    codec: LabelCodec
    temperature: float
    teacher: TeacherRow
    plan_parameters: Mapping[str, Any]
    stored: bool
    """False for label maps, whose crops are computed."""
    stated: Mapping[str, Any]
    facts: Mapping[str, Any]

    @property
    def record(self) -> dict[str, Any]:
        """The codec as a new label set has it: how class ids are kept is decided on the first shard."""
        return with_class_ids(self.codec.to_record(), None)


def target_of(
    labels: LabelSource,
    images: ImageSource,
    stated: Stated,
    *,
    options: ImportOptions,
    format_name: str,
    source: str,
) -> Target:
    """The label set that these labels are to become; UsageError where that is not possible."""
    contents = labels.contents
    num_classes = contents.num_classes or stated.classes(format_name)
    if stated.num_classes is not None and not 1 <= stated.num_classes <= MAX_CLASSES:
        raise UsageError(f"`num_classes={stated.num_classes}`: 1 to {MAX_CLASSES}")
    codec, name = _codec(contents, stated, options.dtype), options.name
    check_conversion(contents, codec, stated.num_classes or num_classes, format_name)
    codec.fields(num_classes)
    temperature = _temperature(contents, codec, stated, format_name)
    is_map = contents.kind == "map"
    num_crops = (stated.num_crops or MAP_CROPS) if is_map else contents.num_crops
    check_num_crops(num_crops)
    teacher = _teacher(stated, format_name, num_classes, name or format_name, contents.input_size)
    return Target(
        format=format_name,
        name=name or teacher.name,
        plan=options.plan_name or PLAN,
        num_crops=num_crops,
        num_classes=num_classes,
        codec=codec,
        temperature=temperature,
        teacher=teacher,
        plan_parameters=_map_plan(stated).to_record()
        if is_map
        else imported_record(format_name, mixed=contents.mixed, blended=contents.blended),
        stored=not is_map,
        stated=stated.said(),
        facts={
            "images": str(images.root),
            "ignored": dict(images.ignored),
            "imported_from": {"format": format_name, "source": source},
            "stated": stated.said(),
            "found": dict(labels.facts),
            "lost": list(labels.lost),
            **(Outputs.none("embedding").to_record() if contents.kind == "embedding" else {}),
        },
    )


def existing_plan(path: Path, target: Target, images: ImageSource) -> None:
    """ConflictError where a store is there and holds something else under the names of the target."""
    if not exists(path):
        return
    with open_store(path, readonly=True) as store:
        _check(store, target, images)
        store.catalogue.check_writable()


@contextmanager
def prepared(
    path: Path,
    images: ImageSource,
    target: Target,
    options: ImportOptions,
) -> Iterator[tuple[Store, LabelSetRow]]:
    """The store with plan, teacher and label set registered, and its row. ConflictError where it holds something
    else."""
    if not exists(path):
        try:
            create(
                path,
                images=images,
                plan=_plan_row(target, len(images), options),
                backend=options.backend,
            ).close()
        except ConflictError:
            if not exists(path):
                raise
    with open_store(path) as store:
        _check(store, target, images)
        yield store, _registered(store, target, options)


def _codec(contents: Contents, stated: Stated, dtype: str | None) -> LabelCodec:
    compression = stated.compression or _DEFAULTS[contents.kind]
    k = stated.k
    if k is None and compression in ("ms", "mr", "labelmap") and contents.k is not None:
        k = contents.k
    codec = codec_from_options(compression, k, dtype)
    if isinstance(codec, LabelMap) and contents.cells is not None:
        height, width = contents.cells
        return replace(codec, height=height, width=width, image_size=stated.input_size)
    return codec


def _temperature(contents: Contents, codec: LabelCodec, stated: Stated, format_name: str) -> float:
    """T0 of the labels: stated, said by the format, or of the softmax that the import takes; UsageError where it has to
    be said, or contradicts."""
    said, known = stated.temperature, contents.temperature
    if said is not None:
        check_temperature(said)
    if codec.takes in ("outputs", "map") and said not in (None, 1):
        raise UsageError(
            f"temperature {said:g} with {codec.name}: outputs are kept as they are, and a run chooses T; leave it out"
        )
    if known is not None and said not in (None, known):
        raise UsageError(
            f"temperature {said:g}: {format_name} labels are made at temperature {known:g}; leave it out"
        )
    if (
        said is None
        and known is None
        and contents.kind in ("kept", "probabilities")
        and codec.name != "hard"
    ):
        stated.need(
            "temperature",
            f"{format_name} files do not say at which temperature their probabilities were made, 1 for a plain softmax",
        )
    return next((value for value in (said, known) if value is not None), 1.0)


def _map_plan(stated: Stated) -> CropPlan:
    return CropPlan(
        scale=stated.scale or (0.08, 1.0),
        ratio=stated.ratio or (3 / 4, 4 / 3),
        flip_prob=0.5 if stated.flip_prob is None else stated.flip_prob,
    )


def _teacher(
    stated: Stated, format_name: str, num_classes: int, label_set: str, proved_size: int | None
) -> TeacherRow:
    """The teacher as far as it is known: what was not said has a usual value, and no weights stand behind it."""
    said = stated.teacher or "unknown"
    if stated.teacher is not None and not (
        stated.teacher.isprintable() and len(stated.teacher) <= 200
    ):
        raise UsageError(
            "`teacher`: give a name of up to 200 printable characters, such as timm:resnet50"
        )
    if stated.input_size is not None and not 1 <= stated.input_size <= 65_534:
        raise UsageError(f"`input_size={stated.input_size}`: 1 to 65534 pixels")
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", (stated.teacher or label_set).rpartition(":")[2])
    name = words.strip("-._")[:100] or format_name
    # a teacher of unknown weights is never the same as another
    whose = said if stated.teacher else f"{said}/{format_name}/{label_set}"
    identity = f"imported/{whose}/{num_classes}/{stated.input_size}"
    return TeacherRow(
        name=name,
        source=f"imported:{said}",
        architecture=stated.teacher or "unknown",
        digest=hashlib.sha256(identity.encode()).hexdigest(),
        num_classes=num_classes,
        input_size=stated.input_size or proved_size or 224,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        interpolation=stated.interpolation or "bilinear",
        crop_pct=0.875,
        facts={
            "imported": True,
            "assumed": [
                field
                for field, known in (
                    ("input_size", stated.input_size or proved_size),
                    ("interpolation", stated.interpolation),
                )
                if known is None
            ]
            + ["mean", "std", "crop_pct"],
        },
    )


def _bytes_per_crop(target: Target) -> float:
    fields = target.codec.fields(target.num_classes)
    raw = {
        per: sum(np.dtype(f.dtype).itemsize * math.prod(f.shape) for f in fields if f.per == per)
        for per in ("crop", "image")
    }
    per_crop = raw["crop"] + raw["image"] / target.num_crops
    if target.codec.kept(target.num_classes) is None:
        per_crop = max(per_crop, 4.0 * target.num_classes)  # a block is put together in float32
    crops = sum(
        np.dtype(f.dtype).itemsize * math.prod(f.shape) for f in plan_fields(target.plan_parameters)
    )
    return per_crop + crops


def _first(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _check(store: Store, target: Target, images: ImageSource) -> None:
    """ConflictError unless the store has these images, and under the target's names nothing else."""
    keys = store.image_columns["key"][~store.free]
    if len(keys) != len(images) or any(a != b for a, b in zip(keys, images.keys, strict=True)):
        raise ConflictError(
            f"{store.path} holds {len(keys)} images, {images.root} {len(images)}, and they are not the same in the "
            "same order: give the folder that the store was made from, or another STORE"
        )
    if images.classes != store.class_names and target.num_classes == len(store.class_names):
        raise ConflictError(
            f"{store.path} numbers its classes in the order {_first(store.class_names)}, labels from elsewhere number "
            f"them as torchvision sorts the folders, {_first(images.classes)}: import them into another STORE"
        )
    plan = next((row for row in store.catalogue.plans.all() if row.name == target.plan), None)
    if plan is not None and (plan.num_crops != target.num_crops and target.stored):
        raise ConflictError(
            f"{store.path} has crop plan {plan.name} of {plan.num_crops} crops per image, these labels are of "
            f"{target.num_crops}: give another `plan_name`, or another STORE"
        )
    mixed = bool(target.plan_parameters.get("mixed"))
    if plan is not None and mixed != bool(plan.parameters.get("mixed")):
        raise ConflictError(
            f"{store.path}: crop plan {plan.name} keeps {'no ' if mixed else ''}mixing of crops: give another "
            "`plan_name`"
        )
    if plan is not None and plan.parameters.get("augmentation"):
        raise ConflictError(
            f"{store.path}: crops of plan {plan.name} are augmented, which imported labels know nothing of: give "
            "another `plan_name`"
        )
    row = store.find_label_set(target.name)
    if row is not None:
        _compare(store, target, row)


def _compare(store: Store, target: Target, row: LabelSetRow) -> None:
    """ConflictError unless the label set is of the same labels, as far as anybody said."""
    origin = dict(row.facts.get("imported_from", {})).get(
        "format", "labelling images with a teacher"
    )
    differences = {
        "come from": (origin, target.format),
        "compression": (with_class_ids(row.codec, None), target.record),
        "crop plan": (row.plan, target.plan),
        "classes": (row.num_classes, target.num_classes),
        "temperature": (row.temperature, target.temperature),
    }
    stated, given = dict(row.facts.get("stated", target.stated)), dict(target.stated)
    for key in sorted((stated.keys() | given.keys()) - _COMPARED):
        differences[f"`{key}`"] = (stated.get(key, "left out"), given.get(key, "left out"))
    differences |= teacher_differences(store.teacher(row.teacher), target.teacher)
    refuse_differences(row, store.path, differences)


def _plan_row(target: Target, num_images: int, options: ImportOptions) -> PlanRow:
    """The plan of the imported crops, with shards for so many images."""
    layout = choose_layout(
        num_images,
        target.num_crops,
        _bytes_per_crop(target),
        images_per_shard=options.images_per_shard,
        crops_per_shard=options.crops_per_shard,
    )
    return layout.plan_row(target.plan, stored=target.stored, parameters=target.plan_parameters)


def _registered(store: Store, target: Target, options: ImportOptions) -> LabelSetRow:
    """The label set's row, new where there was none."""
    plan = _plan_row(target, store.num_rows, options)
    new = LabelSetRow(
        name=target.name,
        plan=target.plan,
        teacher=target.teacher.name,
        num_classes=target.num_classes,
        codec=target.record,
        uuid=uuid.uuid4().hex,
        temperature=target.temperature,
        facts=target.facts,
    )
    outputs = Outputs.of(new, len(store.class_names))
    new = replace(new, facts={**new.facts, **outputs.to_record()})
    return register(store, new, target.teacher, lambda row: _compare(store, target, row), plan=plan)
