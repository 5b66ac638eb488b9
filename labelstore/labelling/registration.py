"""The row of a label set that a teacher is to make, or to go on with."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

from labelstore.catalogue.records import LabelSetRow, PlanRow, TeacherRow
from labelstore.codecs import identity_of, in_short
from labelstore.codecs.base import LabelCodec
from labelstore.commit.registration import register, unsettled
from labelstore.commit.same_labels import refuse_differences, teacher_differences
from labelstore.labelling.label_facts import check_same
from labelstore.labelling.labelling import Labelling
from labelstore.store import Store
from labelstore.store.outputs import OUTPUT_NAMES
from labelstore.teachers.teacher_check import TeacherEvaluation


def registered(
    store: Store,
    labelling: Labelling,
    plan: PlanRow,
    evaluation: TeacherEvaluation | None,
    note: Callable[[str], None],
    *,
    codec: LabelCodec,
) -> LabelSetRow:
    """A new row, or the one that is there when nothing about it differs (ConflictError).

    `codec` is the labelling's, with what it learnt here, which counts only for a new row. A measured top-1 goes into
    the teacher's row, and so do the names of its outputs where it has none; those that a user stated take the place of
    others. What is returned is the row that was compared: the name may be given to
    another label set meanwhile.
    """
    teacher, temperature = labelling.teacher.row, labelling.options.temperature
    wanted = unsettled(labelling.codec.to_record())

    def compare(row: LabelSetRow) -> None:
        differences = {
            **teacher_differences(store.teacher(row.teacher), teacher),
            "compression": (_codec_words(row.codec, wanted), _codec_words(wanted, wanted)),
            "crop plan": (row.plan, plan.name),
            "classes": (row.num_classes, labelling.num_classes),
            "temperature": (row.temperature, temperature),
        }
        refuse_differences(row, store.path, differences)
        check_same(row, labelling.facts, store.path, note, num_classes=len(store.class_names))

    new = LabelSetRow(
        name=labelling.name,
        plan=plan.name,
        teacher=teacher.name,
        num_classes=labelling.num_classes,
        codec=unsettled(codec.to_record()),
        uuid=uuid.uuid4().hex,
        temperature=temperature,
        facts=labelling.facts.to_record(),
    )
    row = register(store, new, teacher, compare)
    stated = labelling.options.class_names is not None
    _record_about_teacher(store, row.teacher, teacher, evaluation, stated_names=stated)
    return row


def _record_about_teacher(
    store: Store,
    name: str,
    teacher: TeacherRow,
    evaluation: TeacherEvaluation | None,
    *,
    stated_names: bool,
) -> None:
    held = store.teacher(name)
    facts = dict(held.facts)
    if OUTPUT_NAMES in teacher.facts and (stated_names or OUTPUT_NAMES not in facts):
        facts[OUTPUT_NAMES] = teacher.facts[OUTPUT_NAMES]
    if evaluation is not None:
        facts["evaluation"] = evaluation.to_record()
    if facts == held.facts:
        return
    top1 = held.top1 if evaluation is None else evaluation.top1
    with store.catalogue.transaction() as connection:
        store.catalogue.teachers.change(connection, name, top1=top1, facts=facts)


def _codec_words(record: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """A codec in words; a codebook only where one is asked for, and not whichever the label set has."""
    kept = in_short(record) if wanted.get("codebook") else identity_of(record)
    settled = sorted(kept.items())  # the catalogue has its own order
    words = [f"{key}={value}" for key, value in settled if key not in ("name", "class_ids")]
    return " ".join([str(record["name"]), *words])
