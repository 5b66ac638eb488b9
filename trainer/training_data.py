"""What a config trains on: its passes, its images, its validation folder, and the config with blanks filled in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import labelstore
from labelstore.crops import CropPlan
from labelstore.errors import RejectedInput, UsageError
from labelstore.generation.image_check import check_images
from labelstore.images import ImageFolder, scan_folder
from trainer.config import TrainConfig
from trainer.loader import GroundTruthPasses, PassSource, StoredPasses, read_sizes
from trainer.sampler import PassSchedule


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Opened for one run."""

    config: TrainConfig
    """With `num_classes`, `class_names` and `provenance` filled in."""
    source: PassSource
    images: ImageFolder
    val: Path | None


@contextmanager
def open_training_data(
    config: TrainConfig, note: Callable[[str], None] = lambda message: None
) -> Iterator[TrainingData]:
    """Find images, labels and validation folder; scratch files go when the block ends.

    UsageError or RejectedInput name what does not fit: no such folder, images that are not the store's,
    a number of classes that is not the labels'.
    """
    images = scan_folder(_training_folder(config))
    schedule = PassSchedule.of(passes=config.passes, crops_per_image=config.crops_per_image)
    if config.passes * config.crops_per_image != config.epochs:
        note(
            f"{config.epochs} epochs of one crop per image are not whole passes of {config.crops_per_image} crops: "
            f"training for {config.passes * config.crops_per_image}"
        )
    if config.labels == "ground-truth":
        source, config = _ground_truth(config, images, schedule)
    else:
        source, config = _stored(config, images, schedule, note)
    with source:
        if source.counts.left_out:
            note(f"{source.counts.left_out} images have no usable crop and are left out")
        if source.counts.repeating:
            note(
                f"{source.counts.repeating} images have fewer usable crops than m={config.crops_per_image} "
                "and repeat them within a pass"
            )
        yield TrainingData(config=config, source=source, images=images, val=_validation(config))


def _ground_truth(
    config: TrainConfig, images: ImageFolder, schedule: PassSchedule
) -> tuple[PassSource, TrainConfig]:
    config = _with_classes(config, len(images.classes), images.classes, {})
    assert config.num_classes is not None
    source = GroundTruthPasses(
        CropPlan(
            seed=config.seed, scale=config.scale, ratio=config.ratio, flip_prob=config.flip_prob
        ),
        keys=images.keys,
        class_ids=images.class_ids,
        sizes=read_sizes(images, threads=config.workers),
        num_classes=config.num_classes,
        schedule=schedule,
        label_smoothing=config.label_smoothing,
        scratch=config.scratch,
        threads=config.workers,
    )
    return source, config


def _stored(
    config: TrainConfig, images: ImageFolder, schedule: PassSchedule, note: Callable[[str], None]
) -> tuple[PassSource, TrainConfig]:
    assert config.store is not None
    store = labelstore.open(config.store)
    labels = store.label_set(config.label_set)
    mask = None if config.mask is None else store.mask(config.mask)
    if mask is not None and mask.row.teacher != labels.row.teacher:
        raise UsageError(
            f"mask {mask.name} was made from teacher {mask.row.teacher}, label set {labels.name} has "
            f"{labels.row.teacher}: choose a mask of the same teacher"
        )
    check_images(store, images, note)
    teacher = store.teacher(labels.row.teacher)
    if teacher.interpolation != config.interpolation:
        note(
            f"the teacher saw crops resized with {teacher.interpolation}, the student sees {config.interpolation}: "
            f"--interpolation {teacher.interpolation} makes them alike"
        )
    names = store.class_names if len(store.class_names) == labels.num_classes else ()
    provenance = {
        "store": store.uuid,
        "label_set": labels.row.uuid,
        "teacher": teacher.digest,
        **({} if mask is None else {"mask": mask.rule}),
    }
    config = _with_classes(config, labels.num_classes, names, provenance)
    source = StoredPasses(
        labels,
        schedule=schedule,
        seed=config.seed,
        mask=mask,
        temperature=config.temperature,
        scratch=config.scratch,
        allow_empty_images=config.allow_empty_images,
        allow_incomplete=config.allow_incomplete,
        threads=config.workers,
    )
    return source, config


def _with_classes(
    config: TrainConfig, num_classes: int, names: tuple[str, ...], provenance: Mapping[str, object]
) -> TrainConfig:
    if config.num_classes not in (None, num_classes):
        raise UsageError(
            f"--num-classes {config.num_classes}: the labels have {num_classes} classes; leave it out"
        )
    if config.class_names and names and config.class_names != names:
        raise RejectedInput(
            "the class folders are not those that this run began with: resume it on the same images"
        )
    return dataclasses.replace(
        config,
        num_classes=num_classes,
        class_names=tuple(names),
        provenance={
            **provenance,
            "versions": {name: version(name) for name in ("labelstore", "timm", "torch")},
        },
    )


def _training_folder(config: TrainConfig) -> Path:
    if config.train is not None:
        return config.train
    if config.data is None:
        raise UsageError("no images to train on: give --data DIR with train/ in it, or --train DIR")
    inside = config.data / "train"
    return inside if inside.is_dir() else config.data


def _validation(config: TrainConfig) -> Path | None:
    if config.val is not None:
        return config.val
    inside = None if config.data is None else config.data / "val"
    return inside if inside is not None and inside.is_dir() else None
