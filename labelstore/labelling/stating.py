"""What a teacher's outputs are called and which is which class: as a user says, as the library of its weights says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labelstore.errors import ConflictError, UsageError
from labelstore.images.class_names import variant_of, wordnet_ids
from labelstore.store.label_outputs import OUTPUT_NAMES, Outputs
from labelstore.teachers.class_map import map_from, names_from
from labelstore.teachers.named_networks import split_name
from labelstore.teachers.teacher import Teacher

if TYPE_CHECKING:
    import pandas as pd

    from labelstore.store import LabelSet


def state_classes(
    labels: LabelSet,
    *,
    class_map: str | Path | None = None,
    class_names: str | Path | None = None,
    embedding: bool = False,
    dry_run: bool = False,
) -> LabelSet:
    """Record which output of a label set is which class of the images, and names of the teacher's outputs.

    `class_map` and `class_names` as in `generate`; `embedding` says that the outputs are no classes but an embedding.
    Labels stay as they are. ConflictError where the label set recorded something else already, RejectedInput for a map
    or names that do not fit, StorageError for a store that cannot be written. The label set as it is then, with
    `dry_run` as it was.
    """
    store, row = labels.store, labels.row
    facts, teacher = dict(row.facts), store.teacher(row.teacher)
    names = None if class_names is None else names_from(class_names, teacher.num_classes)
    if class_map is not None:
        classes = store.class_names
        said = map_from(class_map, classes, row.num_classes)
        meaning = Outputs.mapped(said.tolist(), row.num_classes, len(classes), str(class_map))
        if labels.outputs.are_classes and not labels.outputs.same_as(meaning):
            raise ConflictError(
                f"label set {row.name} has {labels.outputs.describe(row.num_classes)}, which this class map "
                "contradicts: leave the class map out"
            )
        facts |= meaning.to_record()
    if embedding:
        _check_embedding(labels, class_map)
        facts |= Outputs.none("embedding").to_record()
    if dry_run:
        return labels
    with store.catalogue.transaction() as connection:
        if facts != row.facts:
            store.catalogue.label_sets.change(connection, row.name, facts=facts)
        if names is not None:
            facts_with_names = {**teacher.facts, OUTPUT_NAMES: names}
            store.catalogue.teachers.change(connection, teacher.name, facts=facts_with_names)
    store.finish_metadata()
    return store.label_set(row.name)


def _check_embedding(labels: LabelSet, class_map: str | Path | None) -> None:
    if class_map is not None:
        raise UsageError("`embedding` with a class map: an embedding has no classes, leave one out")
    if labels.codec.takes != "outputs":
        raise UsageError(
            f"label set {labels.name} holds {labels.codec.name} labels, which are probabilities and no embedding"
        )
    if labels.outputs.are_classes:
        raise ConflictError(
            f"label set {labels.name} has {labels.outputs.describe(labels.num_classes)}, and no embedding"
        )


def class_table(labels: LabelSet) -> pd.DataFrame:
    """One row per class of the images: class_id, class, class_name, output (-1 where it has none), images."""
    import numpy as np
    import pandas as pd

    store, outputs = labels.store, labels.outputs
    number = len(store.class_names)
    truth = labels.ground_truth[~store.free]
    return pd.DataFrame(
        {
            "class_id": np.arange(number),
            "class": list(store.class_names),
            "class_name": list(labels.class_titles),
            "output": outputs.of_class if outputs.are_classes else np.full(number, -1),
            "images": np.bincount(truth[truth >= 0], minlength=number),
        }
    )


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
