"""The row of a label set, with its teacher and crop plan: new ones, or those that are there where nothing differs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from labelstore.catalogue.records import LabelSetRow, PlanRow, TeacherRow
from labelstore.store import Store


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
        row, is_pending = store.find_label_set(new.name), bool(catalogue.metadata.pending())
    if row is None:
        row, is_pending = catalogue.together(add)
    if row.uuid != new.uuid:
        compare(row)
    if is_pending:
        store.finish_metadata()
    return row


def unsettled(record: dict[str, object]) -> dict[str, object]:
    """The record of a codec as a new label set has it: how class ids are kept is decided on the first shard."""
    return {**record, "class_ids": None} if "class_ids" in record else record
