"""Labelling every crop of a store's plan with one teacher, or finishing what was begun."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.blocks.block_map import at_most
from labelstore.catalogue.records import LabelSetRow, PlanRow, TeacherRow
from labelstore.codecs import ProductCodes, identity_of, in_short
from labelstore.codecs.base import LabelCodec, with_class_ids
from labelstore.commit.label_set_rows import refuse_differences, register, teacher_differences
from labelstore.commit.lease_keeper import Progress
from labelstore.commit.worker import work_through
from labelstore.cropping.crop_augmentation import planned_augmentation
from labelstore.cropping.crop_mixing import planned_mixing
from labelstore.devices import resize_note
from labelstore.errors import DamagedShard, IncompleteError, RejectedInput
from labelstore.images import ImageSource, open_images
from labelstore.labelling.deriving import learns
from labelstore.labelling.generation_options import GenerationOptions, check_augmented
from labelstore.labelling.image_check import check_images
from labelstore.labelling.label_facts import check_same, recorded_images
from labelstore.labelling.labelling import Labelling
from labelstore.labelling.teacher_blocks import TeacherBlocks
from labelstore.store import Store
from labelstore.store.label_outputs import OUTPUT_NAMES
from labelstore.store.layout import label_layout
from labelstore.teachers.teacher import Teacher, load_teacher
from labelstore.teachers.teacher_check import TeacherCheck, TeacherEvaluation


def no_progress(done: int, total: int) -> None:
    """Ignore progress."""


@dataclass(frozen=True, kw_only=True)
class GenerationReport:
    """What a call of `generate` found and did."""

    label_set: str
    num_images: int
    num_crops: int
    """Crops that this call labelled; 0 when everything was there."""
    already_committed: int
    """Crops that were committed before."""
    bad: dict[str, str]
    """Images left out: key -> reason."""
    seconds: float
    crops_per_second: float


def generate(
    store: Store,
    *,
    teacher: str | Teacher,
    codec: LabelCodec,
    images: str | Path | ImageSource | None = None,
    plan: str | None = None,
    generation: GenerationOptions | None = None,
    check: TeacherCheck | None = None,
    progress: Progress = no_progress,
    note: Callable[[str], None] = lambda message: None,
    begin: Callable[[], None] | None = None,
) -> GenerationReport:
    """Label every crop of the store's plan with one teacher, or finish what was begun.

    `images` is what the store was made from (`images.open_images` says what it may be). Where `images`,
    `class_map`, `classes`, `autocast`, `crop_device` or `decode_device` is not given, it is as the label set recorded
    it. A class map leaves out outputs of the teacher, and with them some of its probability: how much is measured on
    centre crops before anything is written, noted and recorded, and more than a quarter on average is refused with
    RejectedInput without `allow_lost_mass`. `classes="teacher"` keeps all outputs: a network of as many learns from
    them, and the ground truth goes through the map. A label set of the same name is resumed when teacher weights,
    codec, temperature, classes, autocast, crop device and decode device are the same, and refused with ConflictError
    when not. Workers that run this on the same store share the blocks. `check` measures the teacher before anything is
    written. RejectedInput for a teacher that fails it, and names an image that cannot be decoded (`skip_bad` leaves it
    out and records it), has changed, or got NaN from the teacher. IncompleteError after `max_seconds`; what was
    labelled until then is kept. `begin` is called when nothing speaks against the labels any more and before the first
    is made: crops and images that it adds to the store are labelled too.
    """
    asked = generation or GenerationOptions()
    teacher = load_teacher(teacher) if isinstance(teacher, str) else teacher
    with store.catalogue.reading():
        row, plan_row = store.find_label_set(asked.name or teacher.row.name), store.plan(plan)
    folder = open_images(recorded_images(store, row) if images is None else images)
    # images that are new may be about to join
    told = note if begin is None else lambda message: None
    gone = check_images(store, folder, told, skip_bad=asked.skip_bad)
    labelling = Labelling.of(teacher, codec, asked, folder, store=store, row=row, note=note)
    labelling, evaluation = checked(store, labelling, plan_row, row, check, note)
    return label(
        store,
        labelling,
        plan_row,
        gone=gone,
        evaluation=evaluation,
        progress=progress,
        note=note,
        begin=begin,
    )


def checked(
    store: Store,
    labelling: Labelling,
    plan: PlanRow,
    row: LabelSetRow | None,
    check: TeacherCheck | None,
    note: Callable[[str], None],
) -> tuple[Labelling, TeacherEvaluation | None]:
    """Check a labelling against a plan and the label set `row` that it goes on; None: a new one.

    UsageError where the teacher would not see the crops as the plan changes them. Returns it with what its class map
    loses, and the teacher measured on the images of `check`, or as it was when the label set was begun.
    """
    changed = planned_augmentation(plan.parameters) or planned_mixing(plan.parameters)
    check_augmented(changed, labelling.codec, labelling.facts.crop_device)
    evaluation = None
    if check is not None:
        teacher = labelling.classifier.row
        known = None if row is None else check.recorded(store.teacher(row.teacher), teacher)
        evaluation = labelling.measured(check, store.class_names, known, note)
    return labelling.with_lost_mass(note) if row is None else labelling, evaluation


def label(
    store: Store,
    labelling: Labelling,
    plan: PlanRow,
    *,
    gone: frozenset[int],
    evaluation: TeacherEvaluation | None,
    progress: Progress,
    note: Callable[[str], None],
    begin: Callable[[], None] | None = None,
) -> GenerationReport:
    """`generate` once everything is checked; `gone` are image rows that `check_images` found missing."""
    if labelling.crop_device is not None:
        unable = resize_note(labelling.crop_device, labelling.teacher.row.interpolation)
        if unable is not None:
            note(f"{unable}, which `crop_device=cpu` does faster")
    codec = labelling.codec
    if learns(codec) and store.find_label_set(labelling.name) is None:
        progress(0, store.num_images * plan.num_crops)
        codec = learnt_by(labelling, store, plan, gone, note)
    row = registered(store, labelling, plan, evaluation, note, codec=codec)
    if begin is not None:
        begin()
        gone = check_images(store, labelling.images, note, skip_bad=labelling.options.skip_bad)
        plan = store.plan(row.plan)
    with store.catalogue.reading():
        layout = label_layout(row, plan, store.num_rows)
        shards = store.catalogue.ledger.shards(f"labels/{row.name}")
    blocks = TeacherBlocks(
        store=store,
        group=f"labels/{row.name}",
        identity=row.uuid,
        layout=layout,
        blocks=range(layout.num_blocks),
        labelling=labelling,
        plan=plan,
        row=row,
        gone=gone,
    )
    started = time.monotonic()
    before = [
        shard
        for shard in shards
        if shard.crop_shard < layout.num_crop_shards and shard.block < layout.num_blocks
    ]
    keys, num_images = store.image_columns["key"], store.num_images
    if len(before) == layout.num_blocks * layout.num_crop_shards:
        total = sum(map(blocks.size, blocks.blocks))
        progress(total, total)
        check_committed_files(store, blocks.group)
    else:
        _work_through(blocks, progress)
        store.refresh()
    seconds = time.monotonic() - started
    return GenerationReport(
        label_set=row.name,
        num_images=num_images,
        num_crops=blocks.num_labelled,
        already_committed=sum(shard.num_images for shard in before) * layout.crops_per_shard,
        bad={str(keys[image]): why for image, why in sorted(blocks.bad.items())},
        seconds=seconds,
        crops_per_second=blocks.num_labelled / seconds if seconds else 0.0,
    )


def _work_through(blocks: TeacherBlocks, progress: Progress) -> None:
    """Label what is missing. IncompleteError at the deadline."""

    def told(done: int, total: int) -> None:
        progress(done, total)
        if blocks.labelling.options.is_late and blocks.has_begun and done < total:
            raise IncompleteError(
                f"stopped after `max_seconds` with {done} of {total} crops of {blocks.row.name} labelled: "
                "run the same command again to go on"
            )

    work_through(blocks, progress=told)


CROPS = 10_000
"""That a teacher labels for a codebook, about 39 for each entry, as faiss advises."""


def learnt_by(
    labelling: Labelling,
    store: Store,
    plan: PlanRow,
    gone: frozenset[int],
    note: Callable[[str], None],
) -> LabelCodec:
    """The codec with what it learns from the teacher's outputs of some crops; itself where it learns nothing."""
    codec = labelling.codec
    if not isinstance(codec, ProductCodes) or codec.is_trained:
        return codec
    num_crops = min(plan.num_crops, 16)
    there = [row for row in np.flatnonzero(~store.bad).tolist() if row not in gone]
    images = at_most(there, -(-CROPS // num_crops))
    jobs = labelling.jobs(store, images)
    note(f"learning the codebook from {len(images) * num_crops:,} crops of {len(images):,} images")
    outputs: list[NDArray[np.float32]] = []
    batches = labelling.label(store, plan, jobs, num_crops=num_crops)
    with closing(batches):
        for batch in batches:
            for crops in batch:
                if crops.opened.bad is None:
                    outputs.append(crops.labels["logits"])
                elif not labelling.options.skip_bad:
                    raise RejectedInput(
                        f"{crops.opened.bad}: fix the file, or leave it out with `skip_bad`"
                    )
    return codec.trained(
        np.concatenate(outputs) if outputs else np.empty((0, labelling.num_classes), np.float32)
    )


def check_committed_files(store: Store, group: str) -> None:
    """DamagedShard where a file that the ledger names is missing or of another size."""
    for row in store.catalogue.ledger.shards(group):
        for file in row.files:
            path = store.arrays.root / file.key
            size = path.stat().st_size if path.is_file() else None
            if size != file.size:
                problem = "is missing" if size is None else f"has {size} of {file.size} bytes"
                raise DamagedShard(
                    f"{path} {problem}: every label was made, but run "
                    f"`labelstore.verify({str(store.path)!r})`, then "
                    f"`labelstore.repair(labelstore.open({str(store.path)!r}), images=DIR)`"
                )


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
    wanted = with_class_ids(labelling.codec.to_record(), None)

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
        codec=with_class_ids(codec.to_record(), None),
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
    if evaluation is None and OUTPUT_NAMES not in teacher.facts:
        return
    recorded = store.teacher(name)
    facts = dict(recorded.facts)
    if OUTPUT_NAMES in teacher.facts and (stated_names or OUTPUT_NAMES not in facts):
        facts[OUTPUT_NAMES] = teacher.facts[OUTPUT_NAMES]
    if evaluation is not None:
        facts["evaluation"] = evaluation.to_record()
    if facts == recorded.facts:
        return
    top1 = recorded.top1 if evaluation is None else evaluation.top1
    with store.catalogue.transaction() as connection:
        store.catalogue.teachers.change(connection, name, top1=top1, facts=facts)


def _codec_words(record: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """A codec in words; a codebook only where one is asked for, and not whichever the label set has."""
    kept = in_short(record) if wanted.get("codebook") else identity_of(record)
    settled = sorted(kept.items())  # the catalogue has its own order
    words = [f"{key}={value}" for key, value in settled if key not in ("name", "class_ids")]
    return " ".join([str(record["name"]), *words])
