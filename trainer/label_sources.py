"""Label sources of a config without phases: passes on fresh crops, or on a store's, with their checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import labelstore
from labelstore.calibration.ensembles import Ensemble
from labelstore.catalogue.records import PlanRow
from labelstore.cropping.crop_plan import CropPlan
from labelstore.errors import RejectedInput, UsageError
from labelstore.images import ImageSource
from labelstore.labelling.image_check import check_images
from labelstore.store.label_outputs import student_names
from trainer.config import TrainConfig
from trainer.config_checks import learns_from_store
from trainer.loader import DrawOptions, GroundTruthPasses, PassSource, StoredPasses, read_sizes
from trainer.loader.supervision import Supervision, chosen_labels
from trainer.phases import WITHOUT_CLASSES
from trainer.sampler import PassSchedule


def label_source(
    config: TrainConfig,
    images: ImageSource,
    schedule: PassSchedule,
    note: Callable[[str], None],
    attach: Path | None,
) -> tuple[PassSource, TrainConfig]:
    """Open the source of settings without phases; return it and the settings with classes and provenance."""
    if config.store is None:
        source, config = _ground_truth(config, images, schedule, attach)
    else:
        labels = chosen_labels(labelstore.open(config.store), config)
        first_line = _other_temperature(config, labels)
        if first_line is not None:
            note(first_line)
        source, config = _stored(config, labels, images, schedule, note, attach)
    provenance = {**source.drawn_from(), **config.provenance}
    return source, dataclasses.replace(config, provenance=provenance)


def _other_temperature(config: TrainConfig, labels: Ensemble) -> str | None:
    """Note the change of temperature where labels are not used at the one that they were made at.

    UsageError where the config asks for none and the labels have several, or for one that they cannot be brought to.
    """
    if not learns_from_store(config):
        return None
    in_force = labels.temperature_in_force(config.temperature)
    others = [member.labels for member in labels.members if member.labels.temperature != in_force]
    if not others:
        return None
    made_at = ", ".join(f"{one.name} at T={one.temperature:g}" for one in others)
    return (
        f"temperature {in_force:g}: labels are brought to it ({made_at} when made), and the student's outputs are "
        "divided by it"
    )


def _ground_truth(
    config: TrainConfig, images: ImageSource, schedule: PassSchedule, attach: Path | None
) -> tuple[PassSource, TrainConfig]:
    if set(config.class_names) == set(images.classes):
        # a run that is resumed keeps its numbering, which may be that of folders sorted otherwise
        images = images.with_classes(config.class_names)
    config = _with_classes(config, len(images.classes), images.classes, {})
    source = fresh_passes(
        config,
        schedule,
        attach,
        keys=images.keys,
        class_ids=images.class_ids,
        # who attaches makes no boxes; 0 is unknown
        sizes=read_sizes(images, threads=config.workers)
        if attach is None
        else np.zeros((len(images), 2), np.int64),
    )
    return source, config


def fresh_passes(
    config: TrainConfig,
    schedule: PassSchedule,
    attach: Path | None,
    *,
    keys: Sequence[str],
    class_ids: NDArray[np.integer[Any]],
    sizes: NDArray[np.int64],
    first_crop: int = 0,
) -> GroundTruthPasses:
    """Passes of fresh crops as a config with `num_classes` says, with their images' classes."""
    assert config.num_classes is not None
    return GroundTruthPasses(
        CropPlan(
            seed=config.seed, scale=config.scale, ratio=config.ratio, flip_prob=config.flip_prob
        ),
        keys=keys,
        class_ids=class_ids,
        sizes=sizes,
        num_classes=config.num_classes,
        schedule=schedule,
        label_smoothing=config.label_smoothing,
        first_crop=first_crop,
        scratch=config.scratch,
        attach=attach,
        threads=config.workers,
    )


def _stored(
    config: TrainConfig,
    labels: Ensemble,
    images: ImageSource,
    schedule: PassSchedule,
    note: Callable[[str], None],
    attach: Path | None,
) -> tuple[PassSource, TrainConfig]:
    store = labels.store
    _check_plan(config, labels.plan)
    _check_again(config, labels, note)
    if attach is None:
        check_images(store, images, note)
    teachers = [store.teacher(member.labels.row.teacher) for member in labels.members]
    # a map's teacher saw whole images, an online one sees what the student sees, and the truth has none
    others = config.labels in ("labelmap", "teacher", "ground-truth")
    for teacher in () if others else teachers:
        if teacher.interpolation != config.interpolation:
            note(
                f"the teacher {teacher.name} saw crops resized with {teacher.interpolation}, the student sees "
                f"{config.interpolation}: `interpolation={teacher.interpolation}` makes them alike"
            )
    num_classes = labels.num_classes
    if config.labels in ("teacher", "ground-truth"):
        num_classes = len(store.class_names)
    names = store.class_names
    if config.labels not in ("teacher", "ground-truth"):
        # of labels that keep all outputs of the teacher, a class is found again by its folder's name
        first = labels.members[0].labels
        names = student_names(first.outputs, names, first.output_titles)
    masks = [member.mask.rule for member in labels.members if member.mask is not None]
    provenance = {
        "store": store.uuid,
        **(
            {
                "label_set": _one_or_all([member.labels.row.uuid for member in labels.members]),
                "teacher": _one_or_all([teacher.digest for teacher in teachers]),
                "temperature": labels.temperature_in_force(config.temperature),
                **_made_at(labels),
            }
            if learns_from_store(config)
            else {"plan": labels.plan.name}
        ),
        **({"mask": _one_or_all(masks)} if masks else {}),
    }
    config = _with_classes(
        config, num_classes, () if config.labels in WITHOUT_CLASSES else names, provenance
    )
    source = StoredPasses(
        labels,
        schedule=schedule,
        seed=config.seed,
        # labels of an online teacher take the place of the stored ones, which stay as they are
        temperature=None if config.labels == "teacher" else config.temperature,
        draw=DrawOptions(
            order=config.order,
            probability_range=config.probability_range,
            allow_empty_images=config.allow_empty_images,
            allow_incomplete=config.allow_incomplete,
        ),
        supervision=Supervision(
            ground_truth=config.label_smoothing if config.labels == "ground-truth" else None,
            own_classes=config.labels == "teacher",
            as_outputs=config.labels == "embedding",
        ),
        scratch=config.scratch,
        keep_draws=config.keep_draws,
        attach=attach,
        threads=config.workers,
    )
    if (covered := source.labels.num_crops) < labels.num_crops:
        note(
            f"label set {labels.name} covers {covered} of {labels.num_crops} crops of each image: drawing from the "
            f"first {covered}"
        )
    for member in source.labels.members:
        mask, made_at = member.mask, member.labels.temperature
        if mask is None:
            continue
        if mask.num_crops < covered:
            note(
                f"mask {mask.name} covers {mask.num_crops} of these {covered} crops, and keeps no other"
            )
        if mask.temperature not in (None, made_at):
            note(
                f"mask {mask.name} looked at labels at T={mask.temperature:g}, label set {member.labels.name} was made "
                f"at T={made_at:g}: regions stay as the mask has them"
            )
    return source, config


def _check_plan(config: TrainConfig, plan: PlanRow) -> None:
    """UsageError for a setting of crops that is neither the usual one nor what the stored crops were drawn with."""
    usual = {field.name: field.default for field in dataclasses.fields(config)}
    for name in ("scale", "ratio", "flip_prob"):
        value, own = getattr(config, name), plan.parameters.get(name, "values of their own")
        # JSON knows no tuples
        if value not in (usual[name], tuple(own) if isinstance(own, list) else own):
            raise UsageError(
                f"{name}={value!r} in the settings of this run: the crops of plan {plan.name} were drawn with {own!r} "
                f"and are shown so; set {name}={usual[name]!r}"
            )


def _check_again(config: TrainConfig, labels: Ensemble, note: Callable[[str], None]) -> None:
    """UsageError where crops that were mixed for the teacher would be mixed again; a note where they change again."""
    parameters = labels.plan.parameters
    if parameters.get("mixed") and config.mixing != "none" and not config.mix_again:
        raise UsageError(
            f"mixing={config.mixing!r} in the settings of this run: the crops of plan {labels.plan.name} were mixed "
            "before the teacher saw them and are shown so; set mixing='none', or mix_again to mix them once more"
        )
    if parameters.get("augmentation") and (any(config.color_jitter) or config.rand_augment):
        note(
            f"the crops of plan {labels.plan.name} are augmented as the teacher saw them; color_jitter and "
            "rand_augment in the settings of this run come on top, for the student alone"
        )


def _made_at(labels: Ensemble) -> dict[str, object]:
    """The T0 of the labels, for the provenance; nothing where it is 1, as in runs that did not write it down."""
    made_at = [member.labels.temperature for member in labels.members]
    return {} if set(made_at) == {1.0} else {"labels_made_at": _one_or_all(made_at)}


def _one_or_all(values: list[Any]) -> object:
    return values[0] if len(values) == 1 else values


def _with_classes(
    config: TrainConfig, num_classes: int, names: tuple[str, ...], provenance: Mapping[str, object]
) -> TrainConfig:
    if num_classes < 2:
        raise RejectedInput(
            f"the training images have one class ({', '.join(names) or 'without a name'}): a student tells classes "
            "apart; give images of two or more"
        )
    if config.num_classes not in (None, num_classes):
        raise UsageError(
            f"`num_classes={config.num_classes}`: the labels have {num_classes} classes; leave it out"
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
