"""A teacher that is ready to label the crops of a data set, checked once; `create`, `repair` and `audit` use it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from labelstore.catalogue.records import LabelSetRow, PlanRow
from labelstore.codecs.base import Field, LabelCodec
from labelstore.cropping.crop_augmentation import planned_augmentation
from labelstore.cropping.device_decoding import device_decoding, sample_of
from labelstore.cropping.replay import decode
from labelstore.devices import backend_of
from labelstore.errors import UsageError
from labelstore.images import ImageSource
from labelstore.labelling.crop_batches import (
    ImageJob,
    OpenedImage,
    TeacherBatch,
    TeacherBatches,
    TeacherPixels,
    WholeImages,
)
from labelstore.labelling.generation_options import (
    GenerationOptions,
    check_crop_device,
    check_decode_device,
)
from labelstore.labelling.label_facts import LabelFacts, facts_for
from labelstore.labelling.lost_mass import LostMass, measured_lost_mass
from labelstore.labelling.mixed_crops import mixed_crops
from labelstore.labelling.stating import with_output_names
from labelstore.store import Store
from labelstore.teachers.dense_head import with_dense_head
from labelstore.teachers.labeller import Labeller
from labelstore.teachers.teacher import Teacher
from labelstore.teachers.teacher_check import TeacherCheck, TeacherEvaluation


@dataclass(frozen=True, kw_only=True)
class LabelledCrops:
    """Labels of crops [first, last) of one image, by the name that the labeller gives them, (m, ...)."""

    opened: OpenedImage
    first: int
    last: int
    labels: dict[str, NDArray[Any]]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """Teacher, codec and circumstances of a label set, in agreement with each other."""

    teacher: Teacher
    """With a dense head where the codec keeps maps."""
    classifier: Teacher
    """As it was loaded."""
    codec: LabelCodec
    labeller: Labeller
    facts: LabelFacts
    num_classes: int
    fields: tuple[Field, ...]
    """The arrays of the label set."""
    options: GenerationOptions
    images: ImageSource
    decode: Callable[[bytes, str], torch.Tensor]
    """Pixels (3, H, W) of an encoded image, on the teacher's device where images are decoded there."""

    @classmethod
    def of(
        cls,
        teacher: Teacher,
        codec: LabelCodec,
        options: GenerationOptions,
        images: ImageSource,
        *,
        store: Store | None = None,
        row: LabelSetRow | None = None,
        note: Callable[[str], None] = lambda message: None,
    ) -> Labelling:
        """Check that they fit together (UsageError, RejectedInput), and put the teacher on its device.

        `store` is where the labels go, None where it is not made yet; `row` is the label set that is to go on.
        What the options do not say is as recorded there. `note` of images that the device does not decode.
        """
        if codec.takes != "probabilities" and options.temperature != 1:
            raise UsageError(
                f"`temperature={options.temperature}` with {codec.name} labels: they are outputs before softmax, and a "
                "run chooses its own temperature; leave it out"
            )
        teacher = with_output_names(teacher, options.class_names, options.class_map)
        facts = facts_for(
            store,
            row,
            teacher,
            codec,
            images=images,
            class_map=options.class_map,
            classes=options.classes,
            autocast=options.autocast,
            crop_device=options.crop_device,
            decode_device=options.decode_device,
            compile_teacher=options.compile_teacher,
        )
        check_crop_device(facts.crop_device, teacher.row.interpolation)
        check_decode_device(facts.decode_device, facts.crop_device)
        outputs = facts.outputs
        num_classes = teacher.row.num_classes if outputs is None else len(outputs)
        classifier = teacher
        teacher, codec = with_dense_head(teacher, codec)
        fields = codec.fields(num_classes)  # refuses K > C and the like
        labeller = _labeller(teacher, codec.kept(num_classes), codec, facts, options, outputs)
        return cls(
            teacher=teacher,
            classifier=classifier,
            codec=codec,
            labeller=labeller,
            facts=facts,
            num_classes=num_classes,
            fields=fields,
            options=options,
            images=images,
            decode=decode
            if facts.decode_device == "cpu"
            else device_decoding(
                labeller.device,
                sample_of(images, images.keys),
                size=teacher.row.input_size,
                interpolation=teacher.row.interpolation,
                note=note,
            ),
        )

    @property
    def name(self) -> str:
        """Name of the label set."""
        return self.options.name or self.teacher.row.name

    @property
    def threads(self) -> int:
        """That decode and crop."""
        return self.options.workers or default_workers()

    @property
    def crop_device(self) -> torch.device | None:
        """Where crops are made; None: on the CPU."""
        return None if self.facts.crop_device == "cpu" else self.labeller.device

    def with_lost_mass(self, note: Callable[[str], None]) -> Labelling:
        """The same with what its class map leaves out, measured on centre crops and noted, in the facts.

        RejectedInput where that is too much and `allow_lost_mass` does not take it.
        """
        class_map, kept = self.facts.class_map, self.facts.outputs
        if class_map is None or kept is None or "lost_mass" in class_map:
            return self
        lost: LostMass | None = None
        if len(kept) < self.classifier.row.num_classes:
            labeller = Labeller(
                self.classifier,
                None,
                device=self.options.device,
                autocast=self.facts.autocast,
                temperature=self.options.temperature,
            )
            lost = measured_lost_mass(
                labeller,
                self.classifier.row,
                kept,
                self.images,
                skip_bad=self.options.skip_bad,
                workers=self.threads,
            )
            lost.judge(allowed=self.options.allow_lost_mass)
            note(str(lost))
        record = None if lost is None else lost.to_record()
        return replace(
            self, facts=replace(self.facts, class_map={**class_map, "lost_mass": record})
        )

    def measured(
        self,
        check: TeacherCheck,
        classes: tuple[str, ...],
        known: TeacherEvaluation | None,
        note: Callable[[str], None],
    ) -> TeacherEvaluation:
        """The classifier's top-1; `known` where the store has it. RejectedInput where it is not the expected one."""
        if known is not None:
            check.judge(self.classifier, known)
            return known
        labeller = self.labeller
        if self.teacher is not self.classifier:
            labeller = _labeller(
                self.classifier, None, self.codec, self.facts, self.options, self.facts.outputs
            )
        return check.run(self.classifier, labeller, classes, workers=self.threads, note=note)

    def jobs(self, store: Store, images: Iterable[int], first_crop: int = 0) -> list[ImageJob]:
        """Return jobs for images by row: their crops from `first_crop` on."""
        keys, file = store.image_columns["key"], self.images.file
        return [
            ImageJob(image=i, key=keys[i], path=file(keys[i]), first_crop=first_crop)
            for i in images
        ]

    def label(
        self,
        store: Store,
        plan: PlanRow,
        jobs: Iterable[ImageJob],
        *,
        num_crops: int,
        check: Callable[[OpenedImage], None] | None = None,
        most_ahead: int | None = None,
    ) -> Generator[list[LabelledCrops], None, None]:
        """The crops of a batch with their labels, while the teacher is at the next batch; arguments of
        `TeacherBatches`.
        """
        batches = TeacherBatches(
            jobs,
            WholeImages() if self.codec.takes == "map" else store.planned_crops(plan),
            TeacherPixels(
                input_size=self.teacher.row.input_size,
                interpolation=self.teacher.row.interpolation,
                device=self.crop_device,
                pin_memory=backend_of(self.labeller.device).copies_ahead,
                decode=self.decode,
                augmentation=planned_augmentation(plan.parameters),
                mixed=mixed_crops(store, plan, self.images),
            ),
            num_crops=num_crops,
            batch_size=self.options.batch_size,
            workers=self.threads,
            check=check,
            most_ahead=most_ahead,
        )
        watch = Stopwatch()
        with (
            closing(iter(batches)) as ready,
            ThreadPoolExecutor(1, thread_name_prefix="teacher") as teacher,
        ):
            behind: tuple[TeacherBatch, Future[dict[str, NDArray[Any]]]] | None = None
            for batch in ready:
                labels = teacher.submit(self.labeller, batch.pixels[: batch.size])
                if behind is not None:
                    yield _labelled(behind[0], behind[1].result(), watch.lap())
                behind = batch, labels
            if behind is not None:
                yield _labelled(behind[0], behind[1].result(), watch.lap())


def _labelled(
    batch: TeacherBatch, labels: dict[str, NDArray[Any]], seconds: float
) -> list[LabelledCrops]:
    """A batch by images; its seconds are shared by its crops."""
    labelled = []
    for segment in batch.segments:
        count = segment.last - segment.first
        part = slice(segment.at, segment.at + count)
        labelled.append(
            LabelledCrops(
                opened=segment.opened.result(),
                first=segment.first,
                last=segment.last,
                labels={name: array[part] for name, array in labels.items()},
                seconds=seconds * count / batch.size,
            )
        )
    return labelled


def _labeller(
    teacher: Teacher,
    kept: int | None,
    codec: LabelCodec,
    facts: LabelFacts,
    options: GenerationOptions,
    outputs: NDArray[np.int64] | None,
) -> Labeller:
    return Labeller(
        teacher,
        kept,
        device=options.device,
        autocast=facts.autocast,
        temperature=options.temperature,
        class_map=outputs,
        compile_teacher=facts.compile,
        takes=codec.takes,
    )


def default_workers() -> int:
    """Decoding threads of one process: one per core, at most 16; processes that torchrun started share the cores."""
    together = os.environ.get("LOCAL_WORLD_SIZE", "1")
    share = int(together) if together.isdecimal() and int(together) > 0 else 1
    return max(1, min(16, (os.cpu_count() or 1) // share))


class Stopwatch:
    """Seconds since it was last read."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds
