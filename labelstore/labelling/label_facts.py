"""How labels come about beside teacher, codec and plan: what a label set keeps in `facts`, and asks for again."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from labelstore.catalogue.records import LabelSetRow
from labelstore.codecs.base import LabelCodec
from labelstore.errors import ConflictError, UsageError
from labelstore.images import ImageSource, are_there
from labelstore.labelling.device_crops import CropDevice
from labelstore.store import Store
from labelstore.teachers.class_map import columns_for, is_projection
from labelstore.teachers.labeller import Autocast
from labelstore.teachers.teacher import Teacher

PACKAGES = ("labelstore", "torch", "torchvision", "timm", "numpy", "pillow")


@dataclass(frozen=True, kw_only=True)
class LabelFacts:
    """Circumstances of a label set; two workers that differ in one of the first three make different labels."""

    autocast: Autocast
    crop_device: CropDevice
    class_map: Mapping[str, Any] | None
    """`source` as given, and `outputs`: the teacher's output of each class. None where all are kept as they are."""
    compile: bool
    images: str
    """Where the images are, as it was given."""
    images_kind: str
    """What they lie in: folder, list, tar or datasets."""
    interpolation: str
    versions: Mapping[str, str]

    @property
    def outputs(self) -> NDArray[np.int64] | None:
        """(classes,) the teacher's output of each class, or None."""
        return None if self.class_map is None else np.asarray(self.class_map["outputs"], np.int64)

    def to_record(self) -> dict[str, Any]:
        """As JSON values."""
        return {**vars(self), "versions": dict(self.versions)}


def versions() -> dict[str, str]:
    """Versions of what makes labels: Python, this package, and the libraries that touch pixels or logits."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def facts_for(
    store: Store,
    row: LabelSetRow | None,
    teacher: Teacher,
    codec: LabelCodec,
    *,
    images: ImageSource,
    class_map: str | Path | None = None,
    autocast: str | None = None,
    crop_device: str | None = None,
    compile_teacher: bool = False,
) -> LabelFacts:
    """The facts of a label set that is there (`row`) or to be made: what is not given is as recorded.

    Where the label set is new, the class map of another one by the same teacher is taken; "wnid", which
    fits any teacher, of any.
    """
    held: Mapping[str, Any] = {} if row is None else row.facts
    return LabelFacts(
        autocast=cast("Autocast", autocast or held.get("autocast", "none")),
        crop_device=cast("CropDevice", crop_device or held.get("crop_device", "cpu")),
        class_map=_class_map(store, row, teacher, codec, class_map),
        compile=compile_teacher or bool(held.get("compile", False)),
        images=str(images.root),
        images_kind=images.kind,
        interpolation=teacher.row.interpolation,
        versions=versions(),
    )


def check_same(
    row: LabelSetRow, facts: LabelFacts, where: Path, note: Callable[[str], None]
) -> None:
    """ConflictError where labels made now would not be like those that the label set has; else notes about versions."""
    held = row.facts
    for key, what, flag in (
        ("autocast", "autocast", "--amp"),
        ("crop_device", "crops made on", "--crop-device"),
    ):
        if key in held and held[key] != getattr(facts, key):
            raise ConflictError(
                f"label set {row.name} in {where} has {what} {held[key]}, asked for {getattr(facts, key)}: "
                f"its labels would not be alike; leave {flag} out, or make another label set with --name NAME"
            )
    if "class_map" in held and _outputs(held["class_map"]) != _outputs(facts.class_map):
        raise ConflictError(
            f"label set {row.name} in {where} has another class map: leave --class-map out to use it again, or "
            "make another label set with --name NAME"
        )
    before = held.get("versions", {})
    changed = [
        f"{name} {before[name]} -> {now}"
        for name, now in facts.versions.items()
        if before.get(name, now) != now and name != "labelstore"
    ]
    if changed:
        note(f"label set {row.name} was begun with other versions: {', '.join(changed)}")


def recorded_images(store: Store, row: LabelSetRow | None = None) -> Path:
    """The images that a label set (or any, the named one first) was made from; UsageError where they are not there."""
    rows = [*([] if row is None else [row]), *store.catalogue.label_sets.all()]
    given = list(dict.fromkeys(str(r.facts["images"]) for r in rows if r.facts.get("images")))
    for images in given:
        if are_there(images):
            return Path(images)
    was = f" ({', '.join(given)} is not there)" if given else ""
    raise UsageError(f"--images DIR is needed: what {store.path} was made from{was}")


def _class_map(
    store: Store,
    row: LabelSetRow | None,
    teacher: Teacher,
    codec: LabelCodec,
    source: str | Path | None,
) -> dict[str, Any] | None:
    if is_projection(teacher, codec, store.class_names, source):
        return None
    if source is None:
        if row is not None and "class_map" in row.facts:
            held: dict[str, Any] | None = row.facts["class_map"]
            return held
        for other in store.catalogue.label_sets.all():
            known = other.facts.get("class_map")
            if known and store.teacher(other.teacher).digest == teacher.row.digest:
                return dict(known)
            fits = teacher.class_names is None and teacher.row.num_classes != len(store.class_names)
            if known and known["source"] == "wnid" and fits:
                source = "wnid"
    return class_map_record(teacher, codec, store.class_names, source)


def class_map_record(
    teacher: Teacher, codec: LabelCodec, classes: tuple[str, ...], source: str | Path | None
) -> dict[str, Any] | None:
    """What `facts` keep of a class map: its source and the teacher's output of each class."""
    outputs = columns_for(teacher, codec, classes, source)
    if outputs is None:
        return None
    return {
        "source": "class names" if source is None else str(source),
        "outputs": outputs.tolist(),
    }


def _outputs(record: Mapping[str, Any] | None) -> list[int] | None:
    return None if record is None else list(record["outputs"])
