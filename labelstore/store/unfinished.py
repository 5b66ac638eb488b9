"""How far an unfinished label set reaches, and what finishes it."""

from __future__ import annotations

from pathlib import Path

from labelstore.catalogue.records import DERIVED, IMPORTED
from labelstore.errors import NotGenerated
from labelstore.store.label_set import LabelSet


def covered_labels(labels: LabelSet) -> LabelSet:
    """The label set as far as it reaches: itself, or its first crops while the growth of its plan is unfinished.

    Crops are numbered and drawn one by one, so these are the labels that there were before the growth.
    NotGenerated where no image block has any.
    """
    covered = labels.covered_crops
    if not covered:
        raise NotGenerated(what_is_missing(labels))
    return labels if covered == labels.num_crops else labels.first_crops(covered)


def what_is_missing(labels: LabelSet) -> str:
    """Say what an unfinished label set covers, and which call finishes it."""
    covered, whole = labels.covered_crops, labels.num_crops
    begun = len(labels.first_crops(covered).blocks) if covered else 0
    parts = []
    if 0 < covered < whole:
        parts.append(f"{covered} of {whole} crops")
    if begun < labels.layout.num_blocks:
        parts.append(f"{begun} of {labels.layout.num_blocks} image blocks")
    reach = " of ".join(parts) or "everything"
    return f"label set {labels.name} is not finished, it covers {reach}: {_finish(labels)}"


def _finish(labels: LabelSet) -> str:
    store, row = labels.store, labels.row
    devices = {shard.device for shard in store.catalogue.ledger.shards(f"labels/{row.name}")}
    if devices == {IMPORTED}:
        return "run the same `labelstore.import_labels` again to finish it"
    if devices and all(device.startswith(DERIVED) for device in devices):
        return "run the same `labelstore.derive` again to finish it"
    if not labels.covered_crops or labels.covered_crops == labels.num_crops:
        return "run the same `labelstore.generate` or `labelstore.grow` again to finish it"
    teacher = store.teacher(row.teacher)
    arguments: dict[str, object] = {"num_crops": labels.num_crops, "teacher": teacher.source}
    if Path(teacher.source).is_file():  # a checkpoint does not say what it is of
        arguments["architecture"] = teacher.architecture
    if len(store.label_sets) > 1:
        arguments["label_set"] = row.name
    given = "".join(f", {name}={value!r}" for name, value in arguments.items())
    return f"finish it with `labelstore.grow(labelstore.open({str(store.path)!r}){given})`"
