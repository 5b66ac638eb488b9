"""What a user says of a label set that is there: which output is which class, and what the outputs are called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from labelstore.errors import ConflictError, UsageError
from labelstore.store.outputs import OUTPUT_NAMES, Outputs
from labelstore.teachers.class_map import map_from, names_from

if TYPE_CHECKING:
    import pandas as pd

    from labelstore.store import LabelSet


def state_classes(
    labels: LabelSet,
    *,
    class_map: str | Path | None = None,
    class_names: str | Path | None = None,
    embedding: bool = False,
) -> LabelSet:
    """Record which output of a label set is which class of the images, and names of the teacher's outputs.

    `class_map` and `class_names` as in `generate`; `embedding` says that the outputs are no classes but an embedding.
    Labels stay as they are. ConflictError where the label set recorded something else already, RejectedInput for a map
    or names that do not fit, StorageError for a store that cannot be written. The label set as it is then.
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
    with store.catalogue.transaction() as connection:
        if facts != row.facts:
            store.catalogue.label_sets.change(connection, row.name, facts=facts)
        if names is not None:
            held = {**teacher.facts, OUTPUT_NAMES: names}
            store.catalogue.teachers.change(connection, teacher.name, facts=held)
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
