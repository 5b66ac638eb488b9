"""The rows of a teacher and of a label set: new ones, or those that are there where nothing differs."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from labelstore.catalogue.records import LabelSetRow, TeacherRow
from labelstore.codecs.base import LabelCodec
from labelstore.commit.same_labels import refuse_differences, teacher_differences
from labelstore.errors import ConflictError
from labelstore.labelling.label_facts import LabelFacts, check_same
from labelstore.store import Store
from labelstore.store.outputs import OUTPUT_NAMES
from labelstore.teachers.teacher_check import TeacherEvaluation

ATTEMPTS = 3
"""Workers that start together register together; whoever comes second finds the first one's row."""


def register(
    store: Store,
    teacher: TeacherRow,
    codec: LabelCodec,
    name: str,
    plan: str,
    num_classes: int,
    temperature: float,
    facts: LabelFacts,
    evaluation: TeacherEvaluation | None = None,
    stated_names: bool = False,
    note: Callable[[str], None] = lambda message: None,
) -> LabelSetRow:
    """The label set's row: a new one, or the existing one when nothing about it differs (ConflictError).

    A measured top-1 goes into the teacher's row, and so do the names of its outputs where it has none; those that a
    user stated take the place of others.
    """
    codec.fields(num_classes)  # K > C and the like are refused before anything is written
    wanted = codec.to_record()
    if "class_ids" in wanted:
        wanted["class_ids"] = None  # decided on the first shard
    for attempt in range(ATTEMPTS):
        row = store.find_label_set(name)
        if row is not None:
            _check_row(store, row, teacher, wanted, plan, num_classes, temperature)
            check_same(row, facts, store.path, note, num_classes=len(store.class_names))
            break
        new = LabelSetRow(
            name=name,
            plan=plan,
            teacher=store.catalogue.teachers.register(teacher, name),
            num_classes=num_classes,
            codec=wanted,
            uuid=uuid.uuid4().hex,
            temperature=temperature,
            facts=facts.to_record(),
        )
        try:
            row = store.catalogue.label_sets.add(new)
            if row.uuid == new.uuid:
                break
            # somebody was faster: the next turn also compares what the catalogue lets differ
        except ConflictError:
            if attempt == ATTEMPTS - 1:
                raise
    else:
        raise ConflictError(
            f"label set {name} in {store.path} comes and goes: run the command again"
        )
    store.finish_metadata()
    _record_about_teacher(store, row.teacher, teacher, evaluation, stated_names=stated_names)
    # not read again: the worker must know which one was compared, should the name be given to another
    return row


def _check_row(
    store: Store,
    row: LabelSetRow,
    teacher: TeacherRow,
    wanted: dict[str, Any],
    plan: str,
    num_classes: int,
    temperature: float,
) -> None:
    held = store.teacher(row.teacher)
    settled = dict(row.codec)
    if "class_ids" in settled:
        settled["class_ids"] = None
    differences = {
        **teacher_differences(held, teacher),
        "compression": (_codec_words(settled), _codec_words(wanted)),
        "crop plan": (row.plan, plan),
        "classes": (row.num_classes, num_classes),
        "temperature": (row.temperature, temperature),
    }
    refuse_differences(row, store.path, differences)


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


def _codec_words(record: dict[str, Any]) -> str:
    words = [str(record["name"])]
    settled = sorted(record.items())  # the catalogue has its own order
    words += [f"{key}={value}" for key, value in settled if key not in ("name", "class_ids")]
    return " ".join(words)
