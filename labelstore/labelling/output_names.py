"""Names of a teacher's outputs: as a user says, as the library of its weights says, or none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from labelstore.images.wordnet import variant_of, wordnet_ids
from labelstore.store.outputs import OUTPUT_NAMES
from labelstore.teachers.class_map import names_from
from labelstore.teachers.named_networks import split_name
from labelstore.teachers.teacher import Teacher


def with_output_names(
    teacher: Teacher, stated: str | Path | None = None, class_map: str | Path | None = None
) -> Teacher:
    """The teacher with the names of its outputs in the facts of its row, where they are known.

    They are known where a user gives them (`stated`, or a class map by WordNet ids), of a run folder that names its
    classes, and of pretrained weights of timm and torchvision. A checkpoint does not say what its outputs are.
    RejectedInput as `names_from`.
    """
    names = _names(teacher, stated, class_map)
    if not names:
        return teacher
    facts: Mapping[str, Any] = {**teacher.row.facts, OUTPUT_NAMES: names}
    return replace(teacher, row=replace(teacher.row, facts=facts))


def _names(teacher: Teacher, stated: str | Path | None, class_map: str | Path | None) -> list[str]:
    outputs = teacher.row.num_classes
    if stated is not None:
        return names_from(stated, outputs)
    if teacher.class_names is not None:
        return list(teacher.class_names)
    source = teacher.row.source
    pretrained = source == teacher.row.architecture  # of a library, and not of a file
    library, name = split_name(source)
    if str(class_map) == "wnid" or (pretrained and library == "timm" and _is_imagenets(teacher)):
        variant = variant_of(outputs)
        return [] if variant is None else list(wordnet_ids(variant))
    if pretrained and library == "torchvision":
        from torchvision import models

        if name in models.list_models():
            names = models.get_model_weights(name).DEFAULT.meta.get("categories", [])
            return list(names) if len(names) == outputs else []
    return []


def _is_imagenets(teacher: Teacher) -> bool:
    """Whether timm says that these pretrained weights have the classes of a variant of ImageNet."""
    from timm.data.imagenet_info import infer_imagenet_subset

    described: Any = getattr(teacher.module, "pretrained_cfg", None)
    return (
        isinstance(described, Mapping)
        and described.get("num_classes") == teacher.row.num_classes
        and infer_imagenet_subset(described) is not None
    )
