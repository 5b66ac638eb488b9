"""The rows that jobs write for: a label set's with its teacher and crop plan, its codec, and what a mask was made from.

A row is new, or the one that is there where nothing differs. The first shard decides how class ids are kept. The
ledger says by uuid of every shard of a mask which label set its codes are of, since a name can be given again; where
shards were committed before that was recorded, nothing is known and nothing is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from labelstore.catalogue.records import DERIVED, LabelSetRow, MaskRow, PlanRow, TeacherRow
from labelstore.codecs import choose_class_ids, codec_from_record
from labelstore.codecs.base import LabelCodec, TopK, with_class_ids
from labelstore.errors import ConflictError
from labelstore.store import Store

if TYPE_CHECKING:
    from labelstore.store.store import Store


def register(
    store: Store,
    new: LabelSetRow,
    teacher: TeacherRow,
    compare: Callable[[LabelSetRow], None],
    *,
    plan: PlanRow | None = None,
) -> LabelSetRow:
    """The label set's row: the one of that name, or `new` with the name under which the store knows the teacher.

    `compare` is called with a row that is there and raises ConflictError where other labels would go into it. Teacher
    and `plan` are added where the store does not have them, in one transaction with the row: of processes that start
    together the first registers, and the others find its row.
    """
    catalogue = store.catalogue

    def add() -> tuple[LabelSetRow, bool]:
        if plan is not None and plan.name not in {row.name for row in catalogue.plans.all()}:
            catalogue.plans.add(plan)
        row = store.find_label_set(new.name)
        if row is None:
            name = catalogue.teachers.register(teacher, new.name)
            row = catalogue.label_sets.add(replace(new, teacher=name))
        return row, bool(catalogue.metadata.pending())

    with catalogue.reading():
        row = store.find_label_set(new.name)
        is_pending = row is not None and bool(catalogue.metadata.pending())
    if row is None:
        row, is_pending = catalogue.together(add)
    if row.uuid != new.uuid:
        compare(row)
    if is_pending:
        store.finish_metadata()
    return row


def refuse_differences(
    row: LabelSetRow, path: Path, differences: Mapping[str, tuple[object, object]]
) -> None:
    """ConflictError for the first of these, what -> (the label set's, asked for), that differs."""
    for what, (held, asked) in differences.items():
        if held != asked:
            raise ConflictError(
                f"label set {row.name} in {path} has {what} {_short(what, held)}, asked for {_short(what, asked)}: "
                "use the same, or make another label set with `name=NAME`"
            )


def teacher_differences(
    recorded: TeacherRow, asked: TeacherRow
) -> dict[str, tuple[object, object]]:
    """Compare what makes the labels of two teachers, for `refuse_differences`."""
    return {
        f"teacher {what}": (value, asked.identity[what])
        for what, value in recorded.identity.items()
    }


def _short(what: str, value: object) -> str:
    # a digest's beginning tells it from others
    return str(value)[:12] if what == "teacher weights" else str(value)


def settled_codec(
    store: Store, row: LabelSetRow, first: Callable[[], TopK | None], *, uuid: str
) -> LabelCodec:
    """The codec of a label set; its form of class ids is chosen on the first shard that anyone commits.

    `first` gives that shard's labels, None where none of its images has any. ConflictError where the label set of
    that name has another `uuid`: it was dropped and created again meanwhile.
    """
    if row.is_settled:
        return codec_from_record(row.codec)
    codec = codec_from_record(with_class_ids(row.codec, "plain"))
    labels = first()
    if labels is not None:
        codec = choose_class_ids(codec, labels, row.num_classes)
    return codec_from_record(store.settle_codec(row.name, codec.to_record(), uuid=uuid))


_ORIGIN = re.compile(rf"{DERIVED}([0-9a-f]{{32}})")


def origin_mark(label_set: LabelSetRow) -> str:
    """The ledger's device column for masks."""
    return f"{DERIVED}{label_set.uuid}"


def origins(device: str) -> list[str]:
    """The uuids in a shard's mark; several where `labelstore merge` put its rows together from several stores."""
    return _ORIGIN.findall(device)


def refuse_dropped_origin(store: Store, mask: MaskRow) -> None:
    """ConflictError where some of a mask's codes are of a label set that the store does not have any more."""
    there = {row.uuid for row in store.catalogue.label_sets.all()}
    marks = {device for _, device in store.catalogue.ledger.labelling(f"masks/{mask.name}")}
    if any(uuid not in there for device in marks for uuid in origins(device)):
        raise ConflictError(
            f"mask {mask.name} of {store.path} was made from a label set that was dropped, not from the "
            f"{mask.label_set} that is there now: `labelstore drop mask {mask.name} {store.path}` first, or "
            "choose another `name`"
        )
