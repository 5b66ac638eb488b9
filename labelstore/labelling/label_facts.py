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
from labelstore.labelling.generation_options import CropDevice, DecodeDevice
from labelstore.store import Store
from labelstore.store.label_outputs import OUTPUT_OF_CLASS, Kind, Outputs
from labelstore.teachers.class_map import LabelClasses, OutputChoice, check_label_classes
from labelstore.teachers.labeller import Autocast
from labelstore.teachers.teacher import Teacher

PACKAGES = ("labelstore", "torch", "torchvision", "timm", "numpy", "pillow")


@dataclass(frozen=True, kw_only=True)
class LabelFacts:
    """Circumstances of a label set; two workers that differ in one of the first four make different labels."""

    autocast: Autocast
    crop_device: CropDevice
    decode_device: DecodeDevice
    class_map: Mapping[str, Any] | None
    """`source` as given, `outputs`: the teacher's output of each class, and what the others hold as `lost_mass`. None
    where all are kept as they are."""
    meaning: Outputs
    """What the outputs that are kept are."""
    compile: bool
    images: str
    """Where the images are, as it was given."""
    images_kind: str
    """What they lie in: folder, list, tar or datasets."""
    ignored: Mapping[str, int]
    """Reason -> files that are no images, where the images are."""
    interpolation: str
    versions: Mapping[str, str]

    @property
    def outputs(self) -> NDArray[np.int64] | None:
        """(classes,) the teacher's output of each class, or None."""
        return None if self.class_map is None else np.asarray(self.class_map["outputs"], np.int64)

    def to_record(self) -> dict[str, Any]:
        """As JSON values."""
        record = {name: value for name, value in vars(self).items() if name != "meaning"}
        return {
            **record,
            **self.meaning.to_record(),
            "ignored": dict(self.ignored),
            "versions": dict(self.versions),
        }


def versions() -> dict[str, str]:
    """Versions of what makes labels: Python, this package, and the libraries that touch pixels or logits."""
    versions_of = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions_of[package] = version(package)
        except PackageNotFoundError:
            versions_of[package] = "not installed"
    return versions_of


def facts_for(
    store: Store | None,
    row: LabelSetRow | None,
    teacher: Teacher,
    codec: LabelCodec,
    *,
    images: ImageSource,
    class_map: str | Path | None = None,
    classes: LabelClasses | None = None,
    autocast: str | None = None,
    crop_device: str | None = None,
    decode_device: str | None = None,
    compile_teacher: bool = False,
) -> LabelFacts:
    """The facts of a label set that is there (`row`) or to be made: what is not given is as recorded.

    `store` None: it is not made yet, and gets the classes of `images`.

    Where the label set is new, the class map of another one by the same teacher is taken; "wnid", which
    fits any teacher, of any. `classes` says whether labels have the data set's classes, or all outputs of the teacher.
    """
    recorded: Mapping[str, Any] = {} if row is None else row.facts
    place = crop_device or recorded.get("crop_device", "cpu")
    if store is None:
        choice = OutputChoice.of(teacher, codec, images.classes, class_map, classes or "data")
        chosen_map = choice.to_record()
    else:
        choice, chosen_map = _output_choice(store, row, teacher, codec, class_map, classes)
    return LabelFacts(
        autocast=cast("Autocast", autocast or recorded.get("autocast", "none")),
        # what is recorded stays readable by older versions, which know the teacher's device as cuda
        crop_device=cast("CropDevice", "cuda" if place == "device" else place),
        class_map=chosen_map,
        meaning=choice.meaning,
        decode_device=cast("DecodeDevice", decode_device or recorded.get("decode_device", "cpu")),
        compile=compile_teacher or bool(recorded.get("compile", False)),
        images=str(images.root),
        images_kind=images.kind,
        ignored=images.ignored,
        interpolation=teacher.row.interpolation,
        versions=versions(),
    )


def check_same(
    row: LabelSetRow,
    facts: LabelFacts,
    where: Path,
    note: Callable[[str], None],
    *,
    num_classes: int,
) -> None:
    """ConflictError where labels made now would not be like those that the label set has; else notes about versions."""
    # before there was a choice
    recorded = {"decode_device": "cpu", **row.facts}
    for key, what in (
        ("autocast", "autocast"),
        ("decode_device", "images decoded on"),
        ("crop_device", "crops made on"),
    ):
        if key in recorded and recorded[key] != getattr(facts, key):
            raise ConflictError(
                f"label set {row.name} in {where} has {what} {recorded[key]}, asked for {getattr(facts, key)}: "
                f"its labels would not be alike; leave `{key}` out, or make another label set with `name=NAME`"
            )
    if "class_map" in recorded and _outputs(recorded["class_map"]) != _outputs(facts.class_map):
        raise ConflictError(
            f"label set {row.name} in {where} has another class map: leave `class_map` out to use it again, or "
            "make another label set with `name=NAME`"
        )
    meaning = Outputs.of(row, num_classes)
    if meaning.kind != "not recorded" and not meaning.same_as(facts.meaning):
        raise ConflictError(
            f"label set {row.name} in {where} has {meaning.describe(row.num_classes)}, asked for others: leave "
            "classes and the class map out to use its own, or make another label set with another name"
        )
    before = recorded.get("versions", {})
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
    raise UsageError(f"`images=DIR` is needed: what {store.path} was made from{was}")


_CLASSES_OF: dict[Kind, LabelClasses] = {
    "mapped": "teacher",
    "not classes": "none",
    "embedding": "embedding",
}
"""What was asked for where outputs are recorded to be this."""


def _output_choice(
    store: Store,
    row: LabelSetRow | None,
    teacher: Teacher,
    codec: LabelCodec,
    source: str | Path | None,
    classes: LabelClasses | None,
) -> tuple[OutputChoice, dict[str, Any] | None]:
    """Which outputs are kept, and the class map as facts keep it."""
    if classes is not None:
        check_label_classes(classes)
    number = len(store.class_names)
    if classes == "embedding":
        return OutputChoice.of(teacher, codec, store.class_names, source, classes), None
    if source is None and row is not None:
        meaning = Outputs.of(row, number)
        recorded = OutputChoice.from_facts(row.facts, meaning)
        if classes in (None, _CLASSES_OF.get(meaning.kind, "data")):
            return recorded, row.facts.get("class_map")
    takes_outputs = codec.takes == "outputs"
    asked: LabelClasses = classes or "data"
    if source is None and classes != "none":
        # raw outputs are all kept by default; which of them are classes is known all the same
        wanted = classes or ("teacher" if takes_outputs else None)
        for other in store.catalogue.label_sets.all():
            if store.teacher(other.teacher).digest != teacher.row.digest:
                continue
            meaning = Outputs.of(other, number)
            known = OutputChoice.from_facts(other.facts, meaning)
            if known.source is None:
                continue
            if wanted in (None, "data" if known.drops else "teacher"):
                return known, other.facts.get("class_map")
            outputs = known.meaning.of_class if known.columns is None else known.columns
            choice = OutputChoice.by_map(
                outputs, teacher.row.num_classes, known.source, wanted or asked
            )
            return choice, choice.to_record()
        fits = teacher.class_names is None and teacher.row.num_classes != number
        if (
            fits
            and not takes_outputs
            and any(_source(other) == "wnid" for other in store.catalogue.label_sets.all())
        ):
            source = "wnid"
    choice = OutputChoice.of(teacher, codec, store.class_names, source, asked)
    return choice, choice.to_record()


def _source(row: LabelSetRow) -> str | None:
    record = row.facts.get("class_map") or row.facts.get(OUTPUT_OF_CLASS) or {}
    return record.get("source")


def _outputs(record: Mapping[str, Any] | None) -> list[int] | None:
    return None if record is None else list(record["outputs"])
