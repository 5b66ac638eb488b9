"""Labelling every crop of a store's plan with one teacher, or finishing what was begun."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labelstore.codecs.base import LabelCodec
from labelstore.commit.lease_keeper import Progress
from labelstore.cropping.crop_augmentation import planned_augmentation
from labelstore.cropping.crop_mixing import planned_mixing
from labelstore.devices import resize_note
from labelstore.errors import UsageError
from labelstore.images import ImageSource, open_images
from labelstore.labelling.device_crops import CropDevice, check_augmented, check_crop_device
from labelstore.labelling.image_check import check_images
from labelstore.labelling.label_facts import facts_for, recorded_images, with_lost_mass
from labelstore.labelling.lost_mass import LostMass
from labelstore.labelling.output_names import with_output_names
from labelstore.labelling.registration import register
from labelstore.labelling.worker import GenerationReport, Worker
from labelstore.store import Store
from labelstore.teachers.class_map import LabelClasses
from labelstore.teachers.dense_head import with_dense_head
from labelstore.teachers.labeller import Autocast, Labeller, check_temperature
from labelstore.teachers.teacher import Teacher, load_teacher
from labelstore.teachers.teacher_check import TeacherCheck, TeacherEvaluation


def generate(
    store: Store,
    *,
    teacher: str | Teacher,
    codec: LabelCodec,
    images: str | Path | ImageSource | None = None,
    name: str | None = None,
    plan: str | None = None,
    temperature: float = 1.0,
    class_map: str | Path | None = None,
    classes: LabelClasses | None = None,
    class_names: str | Path | None = None,
    allow_lost_mass: bool = False,
    lost_mass: LostMass | None = None,
    check: TeacherCheck | TeacherEvaluation | None = None,
    batch_size: int = 64,
    device: str | None = None,
    autocast: Autocast | None = None,
    crop_device: CropDevice | None = None,
    compile_teacher: bool = False,
    workers: int | None = None,
    skip_bad: bool = False,
    max_seconds: float | None = None,
    progress: Progress | None = None,
    note: Callable[[str], None] = lambda message: None,
    begin: Callable[[], None] | None = None,
) -> GenerationReport:
    """Label every crop of the store's plan with one teacher, or finish what was begun.

    `images` is what the store was made from (`images.open_images` says what it may be); where it,
    `class_map`, `classes`, `autocast` or `crop_device` is not given, it is as the label set recorded it. A class map
    leaves out outputs of the teacher, and with them some of its probability: how much is measured on centre crops
    before anything is written (or given as `lost_mass`), noted and recorded, and more than a quarter on average is
    refused with RejectedInput without `allow_lost_mass`. `classes="teacher"` keeps all outputs: a network of as many
    learns from them, and the ground truth goes through the map. `class_names` names the teacher's outputs: a file of
    one name per line, or timm's name of a variant of ImageNet. A label set of the
    same name is resumed when teacher weights, codec, temperature, classes, autocast and crop device are the same,
    and refused with ConflictError when not. Workers that run this on the same store share the blocks. `check`
    measures the teacher before anything is written. RejectedInput for a teacher that fails it, and names an image
    that cannot be decoded (`skip_bad` leaves it out and records it), has changed, or got NaN from the teacher.
    IncompleteError after `max_seconds`; what was labelled until then is kept. `begin` is called when nothing
    speaks against the labels any more and before the first is made: crops and images that it adds to the store are
    labelled too.
    """
    _check_sizes(batch_size, workers)
    check_temperature(temperature)
    if codec.takes != "probabilities" and temperature != 1:
        raise UsageError(
            f"--temperature {temperature} with {codec.name} labels: they are outputs before softmax, and a run "
            "chooses its own temperature; leave it out"
        )
    teacher = load_teacher(teacher) if isinstance(teacher, str) else teacher
    teacher = with_output_names(teacher, class_names, class_map)
    name = name or teacher.row.name
    held = store.find_label_set(name)
    if images is None:
        images = recorded_images(store, held)
    folder = open_images(images)
    # images that are new may be about to join
    told = note if begin is None else lambda message: None
    gone = check_images(store, folder, told, skip_bad=skip_bad)
    facts = facts_for(
        store,
        held,
        teacher,
        codec,
        images=folder,
        class_map=class_map,
        classes=classes,
        autocast=autocast,
        crop_device=crop_device,
        compile_teacher=compile_teacher,
    )
    check_crop_device(facts.crop_device, teacher.row.interpolation)
    parameters = store.plan(plan).parameters
    changed = planned_augmentation(parameters) or planned_mixing(parameters)
    check_augmented(changed, codec, facts.crop_device)
    num_classes = teacher.row.num_classes if facts.outputs is None else len(facts.outputs)
    settings: dict[str, Any] = {
        "device": device,
        "autocast": facts.autocast,
        "temperature": temperature,
        "class_map": facts.outputs,
        "compile_teacher": facts.compile,
    }
    classifier = teacher
    teacher, codec = with_dense_head(teacher, codec)
    labeller = Labeller(teacher, codec.kept(num_classes), takes=codec.takes, **settings)
    if facts.crop_device != "cpu":
        unable = resize_note(labeller.device, teacher.row.interpolation)
        if unable is not None:
            note(f"{unable}, which crop_device='cpu' does faster")
    threads = workers or default_workers()
    if isinstance(check, TeacherCheck):
        known = (
            None if held is None else check.recorded(store.teacher(held.teacher), classifier.row)
        )
        if known is None:
            checked = labeller if teacher is classifier else Labeller(classifier, None, **settings)
            check = check.run(classifier, checked, store.class_names, workers=threads, note=note)
        else:
            check.judge(teacher, known)
            check = known
    if held is None:
        facts = with_lost_mass(
            facts,
            classifier,
            folder,
            {**settings, "class_map": None},
            known=lost_mass,
            allowed=allow_lost_mass,
            skip_bad=skip_bad,
            workers=threads,
            note=note,
        )
    row = register(
        store,
        teacher.row,
        codec,
        name,
        store.plan(plan).name,
        num_classes,
        temperature,
        facts,
        check,
        class_names is not None,
        note,
    )
    if begin is not None:
        begin()
        gone = check_images(store, folder, note, skip_bad=skip_bad)
    worker = Worker(
        store=store,
        folder=folder,
        plan=store.plan(row.plan),
        label_set=row.name,
        uuid=row.uuid,
        labeller=labeller,
        teacher=teacher,
        num_classes=num_classes,
        batch_size=batch_size,
        threads=threads,
        crop_device=None if facts.crop_device == "cpu" else labeller.device,
        skip_bad=skip_bad,
        gone=gone,
        deadline=None if max_seconds is None else time.monotonic() + max_seconds,
        progress=progress or (lambda done, total: None),
    )
    return worker.run()


def _check_sizes(batch_size: int, workers: int | None) -> None:
    for flag, value in (("--batch-size", batch_size), ("--workers", workers)):
        if value is not None and value < 1:
            raise UsageError(f"{flag} {value}: give 1 or more")


def default_workers() -> int:
    """Decoding threads of one process: one per core, at most 16; processes that torchrun started share the cores."""
    together = os.environ.get("LOCAL_WORLD_SIZE", "1")
    share = int(together) if together.isdecimal() and int(together) > 0 else 1
    return max(1, min(16, (os.cpu_count() or 1) // share))
